//! The table of `docs/interop.md`: what was tried with whom, and how long it took.
//!
//! The plan is here: every scenario, and the peers that it is tried with. A test that measures what is not in the plan
//! fails. `ANNULUS_WRITE_DOCS=1 cargo test --test 'interop_*'` fills the table anew; without that, the results are only
//! printed, and `tests/interop_matrix.rs` compares the page with the plan.

use std::path::PathBuf;
use std::time::Duration;

use super::peers;

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The newest hashicorp/memberlist.
    Hashicorp,
    /// Grafana's fork of it.
    Grafana,
    /// Debian 12's Serf.
    Serf09,
    /// Debian 13's Serf.
    Serf010,
    /// Debian 12's Alertmanager.
    Alertmanager025,
    /// Debian 13's Alertmanager.
    Alertmanager028,
    /// The Alertmanager of Debian's development branch.
    AlertmanagerSid,
    /// Grafana's dskit: the same fork over another transport, with the stores and rings of its databases.
    Dskit,
}

use Peer::{Alertmanager025, Alertmanager028, AlertmanagerSid, Dskit, Grafana, Hashicorp, Serf09, Serf010};

impl Peer {
    /// All, in the order of the columns.
    pub const ALL: [Self; 8] =
        [Hashicorp, Grafana, Serf09, Serf010, Alertmanager025, Alertmanager028, AlertmanagerSid, Dskit];

    /// The first words of its column's header; the version follows.
    pub fn title(self) -> &'static str {
        match self {
            Hashicorp => "hashicorp/memberlist",
            Grafana => "grafana/memberlist",
            Serf09 | Serf010 => "Serf",
            Alertmanager025 | Alertmanager028 | AlertmanagerSid => "Alertmanager",
            Dskit => "grafana/dskit",
        }
    }
}

const GO: &[Peer] = &[Hashicorp, Grafana];
const GO_AND_SERF: &[Peer] = &[Hashicorp, Grafana, Serf09, Serf010];
/// Those whose names can be chosen.
const NAMED: &[Peer] = &[Hashicorp, Grafana, Serf09, Serf010, Dskit];
const LABELLED: &[Peer] = &[Hashicorp, Grafana, Alertmanager028, AlertmanagerSid, Dskit];
/// Over memberlist's own transport.
const UDP: &[Peer] = &[Hashicorp, Grafana, Serf09, Serf010, Alertmanager025, Alertmanager028, AlertmanagerSid];
/// Those that have rings.
const RINGS: &[Peer] = &[Dskit];
const ALL: &[Peer] = &Peer::ALL;

macro_rules! scenarios {
    ($($(#[doc = $doc:literal])+ $name:ident: $text:literal, $peers:expr;)*) => {
        /// A row of the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Scenario { $($(#[doc = $doc])+ $name,)* }

        impl Scenario {
            /// All, in the order of the rows.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The row's first cell.
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Whom it is tried with.
            pub fn peers(self) -> &'static [Peer] {
                match self { $(Self::$name => $peers,)* }
            }
        }
    };
}

scenarios! {
    /// The peer is told our address.
    JoinsUs: "it joins us", ALL;
    /// We are told the peer's address.
    WeJoin: "we join it", ALL;
    /// Meta of a member, at the join and changed later.
    Metadata: "metadata both ways, and its changes", GO_AND_SERF;
    /// User messages in packets.
    PacketMessages: "user messages both ways, UDP", UDP;
    /// User messages over streams.
    StreamMessages: "user messages both ways, TCP", UDP;
    /// User state in push/pulls.
    PushPull: "push/pull state both ways", ALL;
    /// The peer says goodbye.
    TheirLeave: "it leaves, and we see it as left", ALL;
    /// We say goodbye.
    OurLeave: "we leave, and it sees us as left", ALL;
    /// The peer is killed, and only nodes of Annulus can notice.
    TheirDeath: "it is killed, and we notice", ALL;
    /// We are killed, and only peers can notice.
    OurDeath: "we are killed, and it notices", ALL;
    /// The same between peers alone, to compare with.
    DeathAmongThem: "(to compare) one of them notices another's death", ALL;
    /// The peer stands still until it is suspected, then goes on.
    TheirRefutation: "it refutes our suspicion", UDP;
    /// We are cut off until we are suspected.
    OurRefutation: "we refute its suspicion", UDP;
    /// The peer comes back with its name and another port.
    TheirRestart: "it left, and returns with its name and another port", NAMED;
    /// We come back with our name and another port.
    OurRestart: "we left, and return with our name and another port", NAMED;
    /// The peer was killed and comes back with its name and another port.
    TheirReturn: "it was killed, and returns with its name and another port", GO;
    /// The same of us.
    OurReturn: "we were killed, and return with our name and another port", GO;
    /// Labels.
    Label: "same label: joined; another or none: refused, both ways", LABELLED;
    /// Keys.
    Keys: "keys of 16, 24 and 32 bytes; another or none: refused, both ways", GO_AND_SERF;
    /// Installing, using, removing.
    KeyRotation: "rotation of keys in a running cluster", GO_AND_SERF;
    /// Compression on either side.
    Compression: "compression on and off on both sides", NAMED;
    /// Whole nodes, through the library's public API.
    WholeNode: "`annulus::Node` in its cluster: join, leave, death", &[
        Hashicorp, Grafana, Alertmanager025, Alertmanager028, AlertmanagerSid
    ];
    /// The same nodes get other keys, through the same API.
    NodeKeyRotation: "`annulus::Node` changes its keys with the cluster", GO;
    /// Several versions at once.
    MixedVersions: "all versions of it and us in one cluster", UDP;
    /// A minute of coming and going.
    Churn: "a minute of churn among up to 10, then all views agree", UDP;
    /// Instances of both in one ring.
    Ring: "one ring: all instances on both sides, and the same owners", RINGS;
    /// A value far above what a packet or a frame holds, which only a push/pull brings.
    LargeState: "a ring of 2 MB by push/pull, both ways", RINGS;
    /// Tombstones of instances.
    Removal: "an instance removed by either stays removed", RINGS;
    /// Tombstones of keys.
    KeyDeletion: "a key deleted by either stays deleted", RINGS;
    /// Killed, and started with the same id.
    TheirInstance: "it is killed, and its instance returns with its tokens", RINGS;
    /// The same of us.
    OurInstance: "we are killed, and our instance returns with its tokens", RINGS;
}

/// Notes that a scenario was gone through with a peer, and how long what it waits for took.
///
/// # Panics
/// When that is not in the plan.
pub fn passed(peer: Peer, version: &str, scenario: Scenario, took: Duration) {
    assert!(scenario.peers().contains(&peer), "{scenario:?} with {peer:?} is not in the plan");
    println!("INTEROP {} {version}: {}: {:.2} s", peer.title(), scenario.title(), took.as_secs_f64());
    if std::env::var_os("ANNULUS_WRITE_DOCS").is_some() {
        std::fs::create_dir_all(results()).unwrap();
        std::fs::write(result(peer, scenario), format!("{version} {:.2}", took.as_secs_f64())).unwrap();
        write_page();
    }
}

/// The page of which the table is a part.
pub fn page() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/interop.md")
}

fn results() -> PathBuf {
    peers().with_file_name("interop")
}

fn result(peer: Peer, scenario: Scenario) -> PathBuf {
    results().join(format!("{peer:?}-{scenario:?}"))
}

/// Version and seconds, if the scenario was gone through.
fn read(peer: Peer, scenario: Scenario) -> Option<(String, String)> {
    let text = std::fs::read_to_string(result(peer, scenario)).ok()?;
    text.split_once(' ').map(|(version, seconds)| (version.to_owned(), seconds.to_owned()))
}

/// What stands before the table and after it.
pub const BEGIN: &str = "<!-- The table is generated: ANNULUS_WRITE_DOCS=1 cargo test --test 'interop_*' -->\n";
/// See [`BEGIN`].
pub const END: &str = "<!-- End of the table. -->\n";

fn write_page() {
    let lock = std::fs::File::create(results().join(".lock")).unwrap();
    lock.lock().unwrap();
    let page_before = std::fs::read_to_string(page()).unwrap();
    let (before, rest) = page_before.split_once(BEGIN).expect("the page says where the table is");
    let (_, after) = rest.split_once(END).expect("the page says where the table ends");
    std::fs::write(page(), format!("{before}{BEGIN}{}{END}{after}", table())).unwrap();
}

fn table() -> String {
    let header = Peer::ALL.map(|peer| {
        let version = Scenario::ALL.iter().find_map(|scenario| read(peer, *scenario)).map(|(version, _)| version);
        format!("{} {}", peer.title(), version.unwrap_or_else(|| "?".to_owned()))
    });
    let mut table = format!("| | {} |\n|---|{}\n", header.join(" | "), "--:|".repeat(header.len()));
    for scenario in Scenario::ALL {
        let cells = Peer::ALL.map(|peer| match read(peer, *scenario) {
            _ if !scenario.peers().contains(&peer) => "–".to_owned(),
            Some((_, seconds)) => seconds,
            None => "?".to_owned(),
        });
        table.push_str(&format!("| {} | {} |\n", scenario.title(), cells.join(" | ")));
    }
    table
}
