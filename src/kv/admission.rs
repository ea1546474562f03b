//! What of a value from another node may enter: the step between decoding it and joining it.
//!
//! A join has to obey its laws for every value, so it cannot look at a clock. What is wrong with *when* an entry was
//! written is judged here, once, where it comes in from outside: [`Codec::admit`](super::Codec::admit). What is
//! refused is not lost for good. Its writer sends it again, and whoever was wrong about the time may be right then.

use super::value::Value;

/// What a store knows about the key of a value that arrived.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// The stored value, tombstones included; `None` for a key that is new here.
    pub value: Option<&'a Value>,
    /// Tombstones that were forgotten after their time; see
    /// [`Mergeable::forgotten`](super::Mergeable::forgotten).
    pub forgotten: Option<&'a Value>,
}

/// What became of a value that arrived.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// What of it may be joined.
    pub value: Value,
    /// How much was refused, and why.
    pub refused: Refused,
    /// What others have to be told: tombstones of entries that came back although they were removed.
    pub reply: Option<Value>,
}

impl From<Value> for Admitted {
    /// All of it, as most values are taken.
    fn from(value: Value) -> Self {
        Self { value, refused: Refused::default(), reply: None }
    }
}

/// How many entries were refused, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Refused {
    /// Dated further in the future than clocks may differ.
    pub future: u64,
    /// Without a date: at or before 1970.
    pub undated: u64,
    /// New here, and so old that everybody has forgotten whether they were removed.
    pub stale: u64,
    /// Removed here, and no newer than their removal.
    pub removed: u64,
    /// Not refused, though in the future or too old, because most of the entries are: then it is more likely that
    /// this node's clock is wrong than that all the others are.
    pub own_clock: u64,
}

impl Refused {
    /// Whether there is anything to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The counts with the names of their reasons.
    #[must_use]
    pub const fn by_reason(&self) -> [(&'static str, u64); 5] {
        [
            ("future", self.future),
            ("undated", self.undated),
            ("stale", self.stale),
            ("removed", self.removed),
            ("own_clock", self.own_clock),
        ]
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.future += other.future;
        self.undated += other.undated;
        self.stale += other.stale;
        self.removed += other.removed;
        self.own_clock += other.own_clock;
    }
}
