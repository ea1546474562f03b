//! Values that can be merged, and the type-erased form in which stores pass them around.

use std::any::{Any, TypeId};
use std::fmt;
use std::sync::Arc;

use crate::clock::Now;

/// A value that replicas can change apart and join again: a join-semilattice.
///
/// `join` must be idempotent, commutative and associative; [`Mergeable::delta`] must satisfy
/// `base.join(new.delta(base)) ⊒ new`, with what `new` no longer has turned into explicit tombstones. Nothing in
/// Annulus ever removes by absence.
pub trait Mergeable: Clone + fmt::Debug + Send + Sync + 'static {
    /// Joins `other` into `self`. Returns what changed, as a value to pass on, or `None` when nothing did.
    fn join(&mut self, other: &Self, now: Now) -> Option<Self>;

    /// What must be joined into `base` (absent: an empty value) to obtain `self`; entries of `base` that `self` lacks
    /// become tombstones dated `now`. `None` when the two are equal.
    fn delta(&self, base: Option<&Self>, now: Now) -> Option<Self>;

    /// Names of the entries inside, so that a newer broadcast can replace an older one that it covers.
    fn content(&self) -> Vec<String>;

    /// Forgets tombstones dated before `before_unix_secs` (`None`: all of them). Returns how many were forgotten.
    fn remove_tombstones(&mut self, before_unix_secs: Option<i64>) -> usize;

    /// The tombstones that [`Mergeable::remove_tombstones`] would forget, joined with those forgotten `earlier`: what a
    /// store remembers about removals after they have left the value, to refuse entries that come back. Must be bounded.
    /// `None`, the default, when the type needs no such memory.
    fn forgotten(&self, earlier: Option<&Self>, before_unix_secs: Option<i64>) -> Option<Self> {
        let _ = (earlier, before_unix_secs);
        None
    }

    /// Whether nothing is inside, tombstones included.
    fn is_empty(&self) -> bool;
}

/// The result of [`Value::join`].
#[derive(Clone, Debug)]
pub struct Joined {
    /// Both values joined.
    pub value: Value,
    /// What the join changed, or `None` when the other value held nothing new.
    pub change: Option<Value>,
}

/// A mergeable value of a type that the store need not know. Immutable and cheap to clone.
#[derive(Clone)]
pub struct Value(Arc<dyn Erased>);

/// Two values of different types met under one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value is of another type than the one stored under this key; both sides must use the same codec")]
pub struct TypeMismatch;

trait Erased: Any + fmt::Debug + Send + Sync {
    fn type_of(&self) -> TypeId;
    fn as_any(&self) -> &dyn Any;
    fn join(&self, other: &dyn Erased, now: Now) -> Result<Option<(Value, Value)>, TypeMismatch>;
    fn delta(&self, base: Option<&dyn Erased>, now: Now) -> Result<Option<Value>, TypeMismatch>;
    fn content(&self) -> Vec<String>;
    fn without_tombstones(&self, before: Option<i64>) -> (Value, usize);
    fn forgotten(&self, earlier: Option<&dyn Erased>, before: Option<i64>) -> Option<Value>;
    fn is_empty(&self) -> bool;
}

impl<T: Mergeable> Erased for T {
    fn type_of(&self) -> TypeId {
        TypeId::of::<T>()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn join(&self, other: &dyn Erased, now: Now) -> Result<Option<(Value, Value)>, TypeMismatch> {
        let other = other.as_any().downcast_ref::<T>().ok_or(TypeMismatch)?;
        let mut joined = self.clone();
        Ok(Mergeable::join(&mut joined, other, now).map(|change| (Value::new(joined), Value::new(change))))
    }

    fn delta(&self, base: Option<&dyn Erased>, now: Now) -> Result<Option<Value>, TypeMismatch> {
        let base = match base {
            Some(base) => Some(base.as_any().downcast_ref::<T>().ok_or(TypeMismatch)?),
            None => None,
        };
        Ok(Mergeable::delta(self, base, now).map(Value::new))
    }

    fn content(&self) -> Vec<String> {
        Mergeable::content(self)
    }

    fn without_tombstones(&self, before: Option<i64>) -> (Value, usize) {
        let mut copy = self.clone();
        let removed = copy.remove_tombstones(before);
        (Value::new(copy), removed)
    }

    fn forgotten(&self, earlier: Option<&dyn Erased>, before: Option<i64>) -> Option<Value> {
        let earlier = earlier.and_then(|earlier| earlier.as_any().downcast_ref::<T>());
        Mergeable::forgotten(self, earlier, before).map(Value::new)
    }

    fn is_empty(&self) -> bool {
        Mergeable::is_empty(self)
    }
}

impl Value {
    /// Wraps a value.
    pub fn new<T: Mergeable>(value: T) -> Self {
        Self(Arc::new(value))
    }

    /// The value as its real type, or `None` when it is another.
    #[must_use]
    pub fn downcast_ref<T: Mergeable>(&self) -> Option<&T> {
        self.0.as_any().downcast_ref()
    }

    /// Whether the value is a `T`.
    #[must_use]
    pub fn is<T: Mergeable>(&self) -> bool {
        self.0.type_of() == TypeId::of::<T>()
    }

    /// Joins two values.
    ///
    /// # Errors
    /// [`TypeMismatch`] when the two are of different types; neither is changed.
    pub fn join(&self, other: &Self, now: Now) -> Result<Joined, TypeMismatch> {
        Ok(match self.0.join(&*other.0, now)? {
            Some((value, change)) => Joined { value, change: Some(change) },
            None => Joined { value: self.clone(), change: None },
        })
    }

    /// What must be joined into `base` to obtain this value; see [`Mergeable::delta`].
    ///
    /// # Errors
    /// [`TypeMismatch`] when `base` is of another type.
    pub fn delta(&self, base: Option<&Self>, now: Now) -> Result<Option<Self>, TypeMismatch> {
        self.0.delta(base.map(|base| &*base.0), now)
    }

    /// Names of the entries inside.
    #[must_use]
    pub fn content(&self) -> Vec<String> {
        self.0.content()
    }

    /// A copy without tombstones dated before `before_unix_secs` (`None`: without any), and how many went.
    #[must_use]
    pub fn without_tombstones(&self, before_unix_secs: Option<i64>) -> (Self, usize) {
        self.0.without_tombstones(before_unix_secs)
    }

    /// The tombstones that [`Value::without_tombstones`] drops, joined with those dropped earlier; see
    /// [`Mergeable::forgotten`].
    #[must_use]
    pub fn forgotten(&self, earlier: Option<&Self>, before_unix_secs: Option<i64>) -> Option<Self> {
        self.0.forgotten(earlier.map(|earlier| &*earlier.0), before_unix_secs)
    }

    /// Whether nothing is inside, tombstones included.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
