//! The format of entries and messages that a cluster writes: one that every live node reads. It rises when an operator
//! says so, after the last node runs the newer program, and never falls; a node that does not read it cannot join.

use serde::Serialize;

use super::picture::NodeInfo;

/// What a finalization found, and what is written after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finalized {
    /// Written from now on.
    pub format: u32,
    /// Written until now.
    pub before: u32,
    /// The newest that any node reads.
    pub newest: u32,
    /// Nodes that do not read the newest.
    pub held_back_by: Vec<HeldBack>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeldBack {
    pub node: String,
    pub version: String,
    pub reads_up_to: u32,
}

/// What becomes of the written format with these live nodes.
pub fn finalized<'a>(written: u32, nodes: impl Iterator<Item = &'a NodeInfo> + Clone) -> Finalized {
    let reads_up_to = |node: &NodeInfo| node.formats.1;
    let all_read = nodes.clone().map(reads_up_to).min().unwrap_or(written);
    let newest = nodes.clone().map(reads_up_to).max().unwrap_or(written);
    let older = nodes.filter(|node| node.formats.1 < newest);
    let held_back_by = older.map(|node| HeldBack {
        node: node.id.clone(),
        version: node.version.clone(),
        reads_up_to: node.formats.1,
    });
    Finalized { format: all_read.max(written), before: written, newest, held_back_by: held_back_by.collect() }
}

/// Whether a program that reads these formats, lowest and highest, can be part of a cluster that writes this one. If not,
/// what its operator should do.
pub fn check(written: u32, (lowest, highest): (u32, u32)) -> Result<(), String> {
    if written > highest {
        return Err(format!(
            "The cluster writes format {written} and this program reads up to {highest}; use a newer program."
        ));
    }
    if written < lowest {
        return Err(format!(
            "The cluster writes format {written} and this program reads from {lowest} on; run the version between them \
             on every node first, then `quipu cluster finalize`."
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, formats: (u32, u32)) -> NodeInfo {
        NodeInfo { formats, ..NodeInfo::idle(id, 1) }
    }

    #[test]
    fn it_rises_to_what_every_node_reads_and_names_who_holds_it_back() {
        let nodes = [node("a", (1, 3)), node("b", (1, 2)), node("c", (2, 3))];
        let done = finalized(1, nodes.iter());
        assert_eq!((done.format, done.before, done.newest), (2, 1, 3));
        assert_eq!(done.held_back_by, [HeldBack { node: "b".into(), version: "0".into(), reads_up_to: 2 }]);
    }

    #[test]
    fn it_never_falls() {
        assert_eq!(finalized(3, [node("a", (1, 2))].iter()).format, 3);
        assert_eq!(finalized(3, [].iter()).format, 3);
    }

    #[test]
    fn a_program_joins_only_where_it_reads_what_is_written() {
        assert_eq!(check(2, (1, 2)), Ok(()));
        assert!(check(3, (1, 2)).unwrap_err().contains("reads up to 2"));
        assert!(check(1, (2, 3)).unwrap_err().contains("cluster finalize"));
    }
}
