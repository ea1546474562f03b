//! What a look-up is for, and which states of an instance serve it.

use super::desc::InstanceState;

/// What a look-up is for. It decides which states serve, and when a replica set takes one more instance because the
/// one it has is coming or going.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// ACTIVE serves; every other state adds a replica.
    Write,
    /// ACTIVE serves; no state adds a replica. Use it for zone-aware rolling updates: with [`Operation::Write`] a
    /// whole zone that is LEAVING makes the quorum larger than what is alive.
    WriteNoExtend,
    /// ACTIVE, LEAVING and PENDING serve; PENDING, JOINING and LEFT add a replica.
    Read,
    /// Every state serves; none adds a replica. For showing a ring, not for data.
    Reporting,
}

impl Operation {
    /// All operations, in the order of their bits in a health mask.
    pub const ALL: [Self; 4] = [Self::Write, Self::WriteNoExtend, Self::Read, Self::Reporting];

    /// The rules as dskit writes them: bit `s` says that state `s` serves, bit `16 + s` that it adds a replica.
    #[must_use]
    pub const fn mask(self) -> u32 {
        match self {
            Self::Write => 0x001E_0001,
            Self::WriteNoExtend => 0x0000_0001,
            Self::Read => 0x001C_0007,
            Self::Reporting => 0x0000_FFFF,
        }
    }

    /// Whether an instance in this state serves the operation.
    #[must_use]
    pub const fn serves(self, state: InstanceState) -> bool {
        has_bit(self.mask() & 0xFFFF, state)
    }

    /// Whether an instance in this state makes the replica set take one more.
    #[must_use]
    pub const fn extends(self, state: InstanceState) -> bool {
        has_bit(self.extension(), state)
    }

    /// The states that extend, one bit each.
    pub(super) const fn extension(self) -> u32 {
        self.mask() >> 16
    }

    /// This operation's bit in the health mask of an instance.
    pub(super) const fn health_bit(self) -> u8 {
        1 << self as u8
    }
}

/// Whether the mask has the state's bit; numbers beyond the mask have none.
pub(super) const fn has_bit(mask: u32, state: InstanceState) -> bool {
    let number = state.number();
    number >= 0 && number < 16 && mask >> number & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use InstanceState::{Active, Joining, Leaving, Left, Pending, Unknown};

    #[test]
    fn operations_accept_and_extend_on_the_states_of_the_table() {
        let states = [Active, Leaving, Pending, Joining, Left];
        let serving = |op: Operation| states.into_iter().filter(|state| op.serves(*state)).collect::<Vec<_>>();
        let extending = |op: Operation| states.into_iter().filter(|state| op.extends(*state)).collect::<Vec<_>>();
        assert_eq!(serving(Operation::Write), [Active]);
        assert_eq!(serving(Operation::WriteNoExtend), [Active]);
        assert_eq!(serving(Operation::Read), [Active, Leaving, Pending]);
        assert_eq!(serving(Operation::Reporting), states);
        assert_eq!(extending(Operation::Write), [Leaving, Pending, Joining, Left]);
        assert_eq!(extending(Operation::WriteNoExtend), []);
        assert_eq!(extending(Operation::Read), [Pending, Joining, Left]);
        assert_eq!(extending(Operation::Reporting), []);
    }

    #[test]
    fn an_unknown_state_serves_no_data() {
        for number in [5, 15, 16, 31, 32, 99, -1, i32::MIN, i32::MAX] {
            for op in [Operation::Write, Operation::WriteNoExtend, Operation::Read] {
                assert!(!op.serves(Unknown(number)), "{op:?} {number}");
            }
        }
    }
}
