//! `docs/interop.md` says what the interop tests do, no more and no less.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/interop/mod.rs"]
mod interop;

use interop::matrix::{self, Peer, Scenario};

#[test]
fn the_page_has_a_result_for_everything_that_is_tested_and_for_nothing_else() {
    if std::env::var_os("ANNULUS_WRITE_DOCS").is_some() {
        // The table is being written.
        return;
    }
    let page = std::fs::read_to_string(matrix::page()).unwrap();
    let table = page.split_once(matrix::BEGIN).unwrap().1.split_once(matrix::END).unwrap().0;
    let rows: Vec<Vec<&str>> =
        table.lines().map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect();
    let (header, rows) = (&rows[0], &rows[2..]);
    assert_eq!(header.len(), 1 + Peer::ALL.len());
    for (column, peer) in header[1..].iter().zip(Peer::ALL) {
        assert!(column.starts_with(peer.title()) && !column.ends_with('?'), "{column}");
    }
    assert_eq!(rows.len(), Scenario::ALL.len());
    for (row, scenario) in rows.iter().zip(Scenario::ALL) {
        assert_eq!(row[0], scenario.title());
        for (cell, peer) in row[1..].iter().zip(Peer::ALL) {
            if scenario.peers().contains(&peer) {
                assert!(cell.parse::<f64>().is_ok(), "{peer:?}, {}: {cell}", scenario.title());
            } else {
                assert_eq!(*cell, "–", "{peer:?}, {}", scenario.title());
            }
        }
    }
}
