//! The table of all routes, and how a path finds its own.

use super::request::{Malformed, Method, decode};

/// One row of the table of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouteInfo {
    /// What it takes.
    pub methods: &'static str,
    /// Its path; `{…}` stands for a name, `{…*}` for a name that may contain slashes.
    pub path: &'static str,
    /// What it is for.
    pub about: &'static str,
}

const fn row(methods: &'static str, path: &'static str, about: &'static str) -> RouteInfo {
    RouteInfo { methods, path, about }
}

/// All routes, for the index and the reference.
pub const ROUTES: &[RouteInfo] = &[
    row("GET", "/", "this index"),
    row("GET", "/ready", "whether every joined ring is ready to serve"),
    row("GET", "/metrics", "OpenMetrics text"),
    row("GET", "/memberlist", "as /api/v1/members"),
    row("GET", "/api/v1/members", "members of the gossip cluster"),
    row("GET", "/api/v1/label", "the labels that this node and the members send"),
    row("GET", "/api/v1/label/plan", "what comes next in a change of label, and whether it is safe"),
    row("GET, POST", "/api/v1/keys", "the gossip keys, by name; install one"),
    row("DELETE", "/api/v1/keys/{id}", "remove a gossip key"),
    row("POST", "/api/v1/keys/{id}/use", "encrypt with a gossip key"),
    row("GET", "/ring", "as /api/v1/rings"),
    row("GET", "/ring/{name}", "as /api/v1/rings/{name}"),
    row("GET", "/api/v1/rings", "all rings"),
    row("GET", "/api/v1/rings/{name}", "one ring"),
    row("GET", "/api/v1/rings/{name}/lookup", "the owners of a key"),
    row("POST", "/api/v1/rings/{name}/forget/{id*}", "remove an instance that will not come back"),
    row("GET", "/api/v1/kv", "keys of the store"),
    row("GET, PUT, DELETE", "/api/v1/kv/{key*}", "one key of the store"),
    row("GET", "/migration", "as /api/v1/migration"),
    row("GET", "/api/v1/migration", "where the migration stands"),
    row("GET", "/api/v1/migration/parity", "both stores, compared now"),
    row("GET", "/api/v1/migration/preflight", "whether a flip is safe, and what stands in the way"),
    row("GET", "/actors", "as /api/v1/actors"),
    row("GET", "/api/v1/actors", "the supervision tree"),
    row("POST", "/api/v1/drills/{actor*}", "make an actor fail, for exercises"),
    row("GET", "/config", "the effective configuration, secrets hidden"),
    row("GET", "/runtime_config", "the runtime configuration as last read"),
    row("GET", "/api/v1/events", "server-sent events of what happens on this node"),
];

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Index,
    Ready,
    Metrics,
    Members,
    LabelStatus,
    LabelPlan,
    GossipKeys,
    GossipKey(String),
    UseGossipKey(String),
    Rings,
    Ring(String),
    Lookup(String),
    Forget(String, String),
    Keys,
    Key(String),
    Migration,
    Parity,
    Preflight,
    Actors,
    Drill(String),
    Config,
    RuntimeConfig,
    Events,
}

impl Route {
    /// The route of a percent-encoded path, or `None` when there is none.
    pub(super) fn find(path: &str) -> Result<Option<Self>, Malformed> {
        let Some(path) = path.strip_prefix('/') else { return Ok(None) };
        // Split first and decode then: an encoded slash belongs to a name.
        if let Some(rest) = path.strip_prefix("api/v1/") {
            return Self::find_api(rest);
        }
        Ok(match path.split_once('/') {
            None => match path {
                "" => Some(Self::Index),
                "ready" => Some(Self::Ready),
                "metrics" => Some(Self::Metrics),
                "config" => Some(Self::Config),
                "runtime_config" => Some(Self::RuntimeConfig),
                "memberlist" => Some(Self::Members),
                "ring" => Some(Self::Rings),
                "migration" => Some(Self::Migration),
                "actors" => Some(Self::Actors),
                _ => None,
            },
            Some(("ring", name)) => one_name(name)?.map(Self::Ring),
            Some(_) => None,
        })
    }

    fn find_api(path: &str) -> Result<Option<Self>, Malformed> {
        let Some((head, rest)) = path.split_once('/') else {
            return Ok(match path {
                "members" => Some(Self::Members),
                "label" => Some(Self::LabelStatus),
                "keys" => Some(Self::GossipKeys),
                "rings" => Some(Self::Rings),
                "kv" => Some(Self::Keys),
                "migration" => Some(Self::Migration),
                "actors" => Some(Self::Actors),
                "events" => Some(Self::Events),
                _ => None,
            });
        };
        Ok(match head {
            "migration" => match rest {
                "parity" => Some(Self::Parity),
                "preflight" => Some(Self::Preflight),
                _ => None,
            },
            "label" => (rest == "plan").then_some(Self::LabelPlan),
            "keys" => match rest.split_once('/') {
                None => one_name(rest)?.map(Self::GossipKey),
                Some((id, "use")) => one_name(id)?.map(Self::UseGossipKey),
                Some(_) => None,
            },
            "kv" => long_name(rest)?.map(Self::Key),
            "drills" => long_name(rest)?.map(Self::Drill),
            "rings" => match rest.split_once('/') {
                None => one_name(rest)?.map(Self::Ring),
                Some((name, "lookup")) => one_name(name)?.map(Self::Lookup),
                Some((name, rest)) => match rest.strip_prefix("forget/") {
                    Some(id) => one_name(name)?.zip(long_name(id)?).map(|(name, id)| Self::Forget(name, id)),
                    None => None,
                },
            },
            _ => None,
        })
    }

    /// What it takes.
    pub(super) const fn methods(&self) -> (&'static [Method], &'static str) {
        match self {
            Self::Forget(..) | Self::Drill(_) | Self::UseGossipKey(_) => (&[Method::Post], "POST"),
            Self::GossipKeys => (&[Method::Get, Method::Post], "GET, POST"),
            Self::GossipKey(_) => (&[Method::Delete], "DELETE"),
            Self::Key(_) => (&[Method::Get, Method::Put, Method::Delete], "GET, PUT, DELETE"),
            _ => (&[Method::Get], "GET"),
        }
    }
}

fn one_name(text: &str) -> Result<Option<String>, Malformed> {
    if text.contains('/') { Ok(None) } else { long_name(text) }
}

fn long_name(text: &str) -> Result<Option<String>, Malformed> {
    Ok(Some(decode(text)?).filter(|name| !name.is_empty()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_row_of_the_table_leads_somewhere_that_takes_its_methods() {
        for row in ROUTES {
            let path = row.path.replace('{', "").replace("*}", "/x").replace('}', "");
            let route = Route::find(&path).unwrap().unwrap_or_else(|| panic!("{path} leads nowhere"));
            assert_eq!(route.methods().1, row.methods, "{path}");
        }
    }

    #[test]
    fn names_are_decoded_after_the_path_is_split() {
        let found = |path| Route::find(path).unwrap();
        assert_eq!(found("/api/v1/rings/a%2Fb"), Some(Route::Ring("a/b".into())));
        assert_eq!(found("/api/v1/rings/a%2Flookup"), Some(Route::Ring("a/lookup".into())));
        assert_eq!(found("/api/v1/rings/a/lookup"), Some(Route::Lookup("a".into())));
        assert_eq!(found("/api/v1/rings/r/forget/x/y"), Some(Route::Forget("r".into(), "x/y".into())));
        assert_eq!(found("/api/v1/kv/a/b%2F/../c"), Some(Route::Key("a/b//../c".into())));
        assert_eq!(found("/api/v1/drills/heartbeat/ingester"), Some(Route::Drill("heartbeat/ingester".into())));
    }

    #[test]
    fn other_paths_lead_nowhere() {
        for path in ["", "x", "//", "/ready/", "/api", "/api/v1", "/api/v1/", "/api/v1/kv/", "/ring/", "/ring/a/b"] {
            assert_eq!(Route::find(path).unwrap(), None, "{path}");
        }
        for path in ["/api/v1/rings//lookup", "/api/v1/rings/r/forget/", "/api/v1/rings/r/forget", "/api/v1/rings/r/x"]
        {
            assert_eq!(Route::find(path).unwrap(), None, "{path}");
        }
        assert!(Route::find("/api/v1/kv/%ff").is_err());
    }
}
