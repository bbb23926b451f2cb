//! A look at a component's structure before it is compiled: a few hundred bytes can describe more instances, and one
//! function more work for the compiler, than this machine has memory. One pass, no validation (the compiler does that).

use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind, ComponentTypeRef, Encoding,
    Instance, Parser, Payload,
};

use super::limits;
use super::revision::Rejected;

/// One component or module that is being read.
#[derive(Debug, Default)]
struct Frame {
    is_component: bool,
    /// Instances that instantiating it makes, itself included.
    instances: u64,
    /// The same of each component that it can name, by index.
    components: Vec<u64>,
}

/// Refuses what would be too much to compile. Each nested component counts as often as it is instantiated.
pub(super) fn scan(bytes: &[u8]) -> Result<(), Rejected> {
    let mut frames: Vec<Frame> = Vec::new();
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(invalid)?;
        match payload {
            Payload::Version { encoding, .. } => {
                if frames.len() > limits::NESTING_MAX {
                    return Err(structure(format!("it is nested more than {} levels deep", limits::NESTING_MAX)));
                }
                frames.push(Frame { is_component: encoding == Encoding::Component, instances: 1, ..Frame::default() });
            }
            Payload::End(_) => {
                let Some(ended) = frames.pop() else { continue };
                if ended.instances > limits::INSTANCES_MAX {
                    let text =
                        format!("it makes more than {} instances of components and modules", limits::INSTANCES_MAX);
                    return Err(structure(text));
                }
                if let (true, Some(outer)) = (ended.is_component, frames.last_mut()) {
                    outer.components.push(ended.instances);
                }
            }
            Payload::CodeSectionEntry(body) => {
                let bytes = body.range().len();
                if bytes > limits::FUNCTION_BYTES_MAX {
                    let max = limits::FUNCTION_BYTES_MAX;
                    return Err(structure(format!("one of its functions has {bytes} bytes; the limit is {max}")));
                }
            }
            payload => section(&mut frames, payload)?,
        }
    }
    Ok(())
}

/// Sections that name or instantiate components and modules.
fn section(frames: &mut [Frame], payload: Payload<'_>) -> Result<(), Rejected> {
    let Some((frame, outer)) = frames.split_last_mut() else { return Ok(()) };
    match payload {
        Payload::InstanceSection(instances) => {
            for instance in instances {
                if let Instance::Instantiate { .. } = instance.map_err(invalid)? {
                    frame.instances += 1;
                }
            }
        }
        Payload::ComponentInstanceSection(instances) => {
            for instance in instances {
                if let ComponentInstance::Instantiate { component_index, .. } = instance.map_err(invalid)? {
                    let made = known(&frame.components, component_index)?;
                    frame.instances = frame.instances.saturating_add(made);
                }
            }
        }
        Payload::ComponentAliasSection(aliases) => {
            for alias in aliases {
                match alias.map_err(invalid)? {
                    ComponentAlias::Outer { kind: ComponentOuterAliasKind::Component, count, index } => {
                        let of = (count as usize).checked_sub(1).map(|up| outer.iter().rev().nth(up));
                        let made = match of {
                            None => known(&frame.components, index)?,
                            Some(Some(outer)) => known(&outer.components, index)?,
                            Some(None) => return Err(unknown(index)),
                        };
                        frame.components.push(made);
                    }
                    ComponentAlias::InstanceExport { kind: ComponentExternalKind::Component, .. } => {
                        return Err(passed());
                    }
                    _ => {}
                }
            }
        }
        Payload::ComponentImportSection(imports) => {
            for import in imports {
                if let ComponentTypeRef::Component(_) = import.map_err(invalid)?.ty {
                    return Err(passed());
                }
            }
        }
        Payload::ComponentExportSection(exports) => {
            for export in exports {
                let export = export.map_err(invalid)?;
                if export.kind == ComponentExternalKind::Component {
                    let made = known(&frame.components, export.index)?;
                    frame.components.push(made);
                }
            }
        }
        _ => {}
    }
    Ok(())
}

fn known(components: &[u64], index: u32) -> Result<u64, Rejected> {
    components.get(index as usize).copied().ok_or_else(|| unknown(index))
}

fn unknown(index: u32) -> Rejected {
    Rejected::Invalid(format!("it uses its component {index} before there is one"))
}

/// What is made of a component that arrives as an argument could only be counted by following it.
fn passed() -> Rejected {
    structure("it hands components from one to another as values; no policy needs that".into())
}

fn structure(text: String) -> Rejected {
    Rejected::Structure(text)
}

fn invalid(error: wasmparser::BinaryReaderError) -> Rejected {
    Rejected::Invalid(format!("{error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPONENT: [u8; 8] = *b"\0asm\x0d\0\x01\0";
    const MODULE: [u8; 8] = *b"\0asm\x01\0\0\0";

    fn leb(mut value: usize) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let byte = (value & 0x7f) as u8;
            value >>= 7;
            out.push(if value == 0 { byte } else { byte | 0x80 });
            if value == 0 {
                return out;
            }
        }
    }

    fn section(id: u8, content: &[u8]) -> Vec<u8> {
        [&[id][..], &leb(content.len()), content].concat()
    }

    /// A component with one module, whose only function is this long.
    fn function(bytes: usize) -> Vec<u8> {
        let body = [vec![0], vec![1; bytes - 2], vec![0x0b]].concat();
        let code = [vec![1], leb(body.len()), body].concat();
        let module = [&MODULE[..], &section(1, &[1, 0x60, 0, 0]), &section(3, &[1, 0]), &section(10, &code)].concat();
        [&COMPONENT[..], &section(1, &module)].concat()
    }

    /// A component that has `inner` and instantiates it this often.
    fn around(inner: &[u8], times: u8) -> Vec<u8> {
        let instances = [vec![times], [0, 0, 0].repeat(usize::from(times))].concat();
        [&COMPONENT[..], &section(4, inner), &section(5, &instances)].concat()
    }

    #[test]
    fn functions_are_limited_before_they_are_compiled() {
        assert_eq!(scan(&function(limits::FUNCTION_BYTES_MAX)), Ok(()));
        let refused = scan(&function(limits::FUNCTION_BYTES_MAX + 1)).unwrap_err().to_string();
        assert!(refused.contains("one of its functions has 524289 bytes"), "{refused}");
    }

    #[test]
    fn nested_components_count_as_often_as_they_are_made() {
        let sixteen = around(&COMPONENT, 15);
        assert_eq!(scan(&around(&sixteen, 15)), Ok(()), "15 times 16 and itself are 241");
        assert!(matches!(scan(&around(&sixteen, 16)), Err(Rejected::Structure(_))), "16 times 16 and itself are 257");
        let many = (0..8).fold(COMPONENT.to_vec(), |inner, _| around(&inner, 100));
        assert!(matches!(scan(&many), Err(Rejected::Structure(_))));
    }

    #[test]
    fn nesting_is_limited() {
        let deep = (0..100).fold(COMPONENT.to_vec(), |inner, _| around(&inner, 1));
        let refused = scan(&deep).unwrap_err().to_string();
        assert!(refused.contains("16 levels"), "{refused}");
    }

    #[test]
    fn a_component_of_later_is_refused() {
        let early = [&COMPONENT[..], &section(5, &[1, 0, 0, 0])].concat();
        assert!(matches!(scan(&early), Err(Rejected::Invalid(_))));
        let imported = [&COMPONENT[..], &section(10, &[1, 0, 1, b'c', 4, 0])].concat();
        assert!(matches!(scan(&imported), Err(Rejected::Structure(_))));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let good = around(&function(10), 3);
        for at in 0..good.len() {
            let _ = scan(&good[..at]);
            for bit in 0..8 {
                let mut changed = good.clone();
                changed[at] ^= 1 << bit;
                let _ = scan(&changed);
            }
        }
    }
}
