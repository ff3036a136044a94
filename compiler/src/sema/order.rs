//! The order in which constants can be computed: each after those that it names.
//!
//! Needs: declared items. Keeps: constants of a circle in the order of the text.

use super::constant::builtin_constant;
use super::evaluate::paths_in;
use super::program::{Entry, Program};
use crate::syntax::ast;
use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use std::collections::HashMap;

/// Constants that can be computed next.
pub(super) struct Group<'a> {
    /// With their modules; one, or all of a circle.
    pub members: Vec<(usize, &'a ast::Const)>,
    /// Each depends on itself.
    pub circular: bool,
}

pub(super) fn constants<'a>(program: &Program<'a>) -> Vec<Group<'a>> {
    let mut graph = DiGraph::new();
    let mut nodes: HashMap<(usize, &str), NodeIndex> = HashMap::new();
    for (module, m) in program.modules.iter().enumerate() {
        for (entry, _) in m.items.values() {
            if let Entry::Const(item) = *entry {
                nodes.insert((module, &item.name.name), graph.add_node((module, item)));
            }
        }
    }
    for node in graph.node_indices() {
        let (module, item) = graph[node];
        paths_in(&item.value, &mut |path| {
            if let [one] = path.segments.as_slice()
                && builtin_constant(&one.name).is_some()
            {
                return;
            }
            if let Some((home, Entry::Const(named))) = program.find(module, &path.segments)
                && let Some(&named) = nodes.get(&(home, named.name.name.as_str()))
            {
                graph.add_edge(node, named, ());
            }
        });
    }
    // In post-order: what is named comes first. (Not Tarjan's, which is recursive: a chain of names has any length.)
    let groups = kosaraju_scc(&graph).into_iter().map(|circle| {
        let circular = circle.len() > 1 || graph.contains_edge(circle[0], circle[0]);
        let mut members: Vec<_> = circle.into_iter().map(|node| graph[node]).collect();
        members.sort_by_key(|(_, item)| (item.name.span.file, item.name.span.start));
        Group { members, circular }
    });
    groups.collect()
}
