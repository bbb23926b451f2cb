//! Guests that cost a careless host much more than they cost their author, as WebAssembly text.

use std::fmt::Write;

/// The smallest well-behaved selection policy, with `extra` in its module.
fn first_candidate(extra: &str) -> String {
    let policy = include_str!("../../modules/selection/first-candidate.wat");
    policy.replacen("(module", &format!("(module {extra}"), 1)
}

/// 20,000 imported functions.
pub fn thousands_of_imports() -> String {
    let mut text = String::from("(component");
    for n in 0..20_000 {
        write!(text, r#"(import "f{n}" (func))"#).expect("a string takes all that is written");
    }
    text + ")"
}

/// Each level instantiates the one below ten times: a hundred million instances in two kilobytes.
pub fn nested_components() -> String {
    let mut inner = String::from("(component (core module $m (memory 1)) (core instance (instantiate $m)))");
    for _ in 0..8 {
        inner = format!(
            "(component {} {})",
            inner.replacen("(component", "(component $c", 1),
            "(instance (instantiate $c))".repeat(10)
        );
    }
    inner
}

/// One function of 10,000 branches over 1,000 live locals, which makes register allocation work.
pub fn slow_to_compile() -> String {
    let mut body = String::from("(func (export \"big\") (param i32) (local");
    body += &" i64".repeat(1_000);
    body += ")";
    for n in 0..10_000u32 {
        let (a, b, c) = (1 + n % 1_000, 1 + n * 7 % 1_000, 1 + n * 13 % 1_000);
        write!(body, "(if(local.get 0)(then(local.set {a}(i64.mul(local.get {b})(local.get {c})))))")
            .expect("a string takes all that is written");
    }
    first_candidate(&(body + ")"))
}

/// 65 MiB of data that nothing uses.
pub fn huge_data() -> String {
    first_candidate(&format!("(data \"{}\")", "x".repeat(65 << 20)))
}
