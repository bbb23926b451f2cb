//! Collects all guests of the tests as binaries in one folder: `assemble OUTPUT RUST_COMPONENTS`.
//!
//! Run it in the folder of the guests. It takes the components that cargo built for wasm32-wasip2 from
//! RUST_COMPONENTS, makes components of `modules/<world>/*.wat`, assembles `components/*.wat` as they are, and writes
//! the ones that are too large or too regular to be kept as text (`bombs`). Binaries are never kept in the repository.

mod bombs;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{PackageId, Resolve};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let usage = "usage: assemble OUTPUT RUST_COMPONENTS";
    let (output, built) = (arguments.next().context(usage)?, arguments.next().context(usage)?);
    fs::create_dir_all(&output)?;
    let write = |name: &str, bytes: &[u8]| {
        let path = output.join(name).with_extension("wasm");
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    };

    for path in files(&built, "wasm")? {
        write(&stem(&path).replace('_', "-"), &fs::read(path)?)?;
    }
    for path in files(Path::new("components"), "wat")? {
        write(&stem(&path), &wat::parse_file(&path)?)?;
    }
    let worlds = Worlds::read()?;
    for folder in fs::read_dir("modules")? {
        let folder = folder?.path();
        for path in files(&folder, "wat")? {
            let component = worlds.component(wat::parse_file(&path)?, &stem(&folder));
            write(&stem(&path), &component.with_context(|| path.display().to_string())?)?;
        }
    }
    write("thousands-of-imports", &wat::parse_str(bombs::thousands_of_imports())?)?;
    write("nested-components", &wat::parse_str(bombs::nested_components())?)?;
    for (name, module) in [("slow-to-compile", bombs::slow_to_compile()), ("huge-data", bombs::huge_data())] {
        write(name, &worlds.component(wat::parse_str(module)?, "selection")?)?;
    }
    let whole = fs::read(built.join("misbehaves_selection.wasm"))?;
    write("truncated", &whole[..whole.len() / 2])
}

/// The contract and `guests.wit`.
struct Worlds {
    resolve: Resolve,
    packages: [PackageId; 2],
}

impl Worlds {
    fn read() -> Result<Self> {
        let mut resolve = Resolve::default();
        let (contract, _) = resolve.push_path("../../wit")?;
        let hostile = resolve.push_str("guests.wit", &fs::read_to_string("guests.wit")?)?;
        Ok(Self { resolve, packages: [contract, hostile] })
    }

    /// Wraps a core module as a component of this world.
    fn component(&self, mut module: Vec<u8>, world: &str) -> Result<Vec<u8>> {
        let world = match self.resolve.select_world(&self.packages[..1], Some(world)) {
            Ok(world) => world,
            Err(_) => self.resolve.select_world(&self.packages[1..], Some(world))?,
        };
        embed_component_metadata(&mut module, &self.resolve, world, StringEncoding::UTF8)?;
        ComponentEncoder::default().module(&module)?.encode()
    }
}

fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    Ok(paths)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
