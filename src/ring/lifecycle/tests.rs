#![allow(clippy::unwrap_used)]

use super::*;
use crate::kv::Mergeable;
use InstanceState::{Active, Joining, Leaving, Left, Pending, Unknown};
use rand::SeedableRng;

const SECOND: Duration = Duration::from_secs(1);

/// One instance with a store in virtual time. The store keeps tombstones, as all of ours do.
struct World {
    now: Now,
    start: Now,
    core: Lifecycle,
    store: Desc,
    /// The store fails, and whether it wrote nonetheless.
    down: bool,
    writes_when_down: bool,
    /// When each edit ran, and which.
    edits: Vec<(Duration, Action)>,
    told: Vec<Output>,
}

impl World {
    fn new(config: LifecycleConfig, store: Desc) -> Self {
        let start = Now { unix: SECOND * 1000, ..Now::read() };
        let core = Lifecycle::new(config, SmallRng::seed_from_u64(1), start);
        Self { now: start, start, core, store, down: false, writes_when_down: false, edits: vec![], told: vec![] }
    }

    fn running(mut config: LifecycleConfig) -> Self {
        config.num_tokens = 4;
        let mut world = Self::new(config, Desc::default());
        world.pass(SECOND);
        assert_eq!(world.core.state(), Active);
        world
    }

    fn give(&mut self, input: Input) {
        self.core.handle(self.now, input);
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Cas { id, edit } => {
                    self.edits.push((self.now.mono - self.start.mono, edit.action.clone()));
                    let result = self.cas(&edit);
                    self.core.handle(self.now, Input::CasDone { id, result });
                }
                other => self.told.push(other),
            }
        }
    }

    fn cas(&mut self, edit: &Edit) -> Result<Option<Instance>, String> {
        let written = !self.down || self.writes_when_down;
        if let Some(new) = edit.apply(Some(&self.store), self.now).filter(|_| written) {
            // Applying is repeatable: a compare-and-swap may call back again.
            assert_eq!(edit.apply(Some(&self.store), self.now).as_ref(), Some(&new));
            if let Some(delta) = new.delta(Some(&self.store), self.now) {
                self.store.join(&delta, self.now);
            }
            // What an edit wants is what is stored afterwards: its entries are newer than what was there.
            for (id, entry) in &new.instances {
                assert_eq!(self.store.instances.get(id), Some(entry));
            }
        }
        if self.down { Err("down".into()) } else { Ok(self.store.instances.get(&edit.id).cloned()) }
    }

    /// Lets time pass, from deadline to deadline.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        let mut steps = 0;
        while let Some(at) = self.core.next_deadline().filter(|at| *at <= end.mono) {
            steps += 1;
            assert!(steps < 10_000, "the core spins at {:?}", self.now.mono - self.start.mono);
            self.now = self.now + at.saturating_duration_since(self.now.mono);
            self.give(Input::Tick);
        }
        self.now = self.now + end.mono.saturating_duration_since(self.now.mono);
    }

    fn own(&self) -> &Instance {
        &self.store.instances["me"]
    }

    fn states(&self) -> Vec<InstanceState> {
        let state = |told: &Output| if let Output::StateChanged { to, .. } = told { Some(*to) } else { None };
        self.told.iter().filter_map(state).collect()
    }

    fn observe(&mut self) {
        let desc = Arc::new(self.store.clone());
        self.give(Input::Observed { desc });
    }
}

fn config() -> LifecycleConfig {
    LifecycleConfig { zone: "z".into(), num_tokens: 4, ..LifecycleConfig::new("me", "me:1") }
}

fn entry(state: InstanceState, timestamp: i64, tokens: &[u32]) -> Instance {
    let mut entry = Instance { state, timestamp, tokens: tokens.into(), addr: "old".into(), ..Instance::default() };
    entry.normalize();
    entry
}

fn ring<const N: usize>(entries: [(&str, Instance); N]) -> Desc {
    Desc { instances: entries.into_iter().map(|(id, entry)| (id.into(), entry)).collect(), ..Desc::default() }
}

#[test]
fn a_new_instance_registers_waits_observes_and_becomes_active() {
    let config = LifecycleConfig { join_after: SECOND * 10, observe_period: SECOND * 20, ..config() };
    let mut world = World::new(config, ring([("other", entry(Active, 1000, &[1, 2]))]));
    world.pass(Duration::ZERO);
    assert_eq!((world.own().state, world.own().tokens.len()), (Pending, 0));
    assert_eq!((&*world.own().addr, &*world.own().zone, world.own().registered_timestamp), ("me:1", "z", 1000));
    world.pass(SECOND * 9);
    assert_eq!(world.own().state, Pending);
    world.pass(SECOND * 2);
    assert_eq!((world.own().state, world.own().tokens.len()), (Joining, 4));
    world.pass(SECOND * 18);
    assert_eq!(world.own().state, Joining);
    world.pass(SECOND * 2);
    assert_eq!(world.own().state, Active);
    assert_eq!(world.states(), [Joining, Active]);
    assert_eq!(world.core.tokens(), &*world.own().tokens);
    assert!(world.told.contains(&Output::SaveTokens(world.own().tokens.to_vec())));
    assert_eq!(*world.store.instances["other"].tokens, [1, 2]);
}

#[test]
fn all_steps_within_one_second_are_each_stored_and_later_than_the_one_before() {
    // join_after zero: registration and tokens are written in the same second.
    let mut world = World::new(config(), Desc::default());
    world.pass(Duration::ZERO);
    assert_eq!((world.own().state, world.own().timestamp), (Active, 1001));
    world.give(Input::Shutdown);
    assert_eq!((world.own().state, world.edits.len()), (Left, 4));
    assert_eq!(world.own().timestamp, 1003);
}

#[test]
fn heartbeats_come_at_the_period_give_or_take_a_tenth_and_are_not_all_alike() {
    let mut world = World::running(config());
    world.edits.clear();
    world.pass(SECOND * 500);
    let pauses: Vec<Duration> = world.edits.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!((90..=112).contains(&pauses.len()), "{}", pauses.len());
    let (least, most) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
    assert!(*least >= SECOND * 9 / 2 && *most <= SECOND * 11 / 2, "{least:?} {most:?}");
    assert!(*most - *least > SECOND / 2);
    assert!(world.now.unix_secs() - world.own().timestamp <= 6);
}

#[test]
fn tokens_from_the_file_make_a_complete_instance_active_at_once_and_are_topped_up_otherwise() {
    let complete = LifecycleConfig { tokens: vec![9, 7, 5, 3, 1], ..config() };
    let mut world = World::new(complete, Desc::default());
    world.pass(Duration::ZERO);
    assert_eq!((world.own().state, &*world.own().tokens), (Active, &[1, 3, 5, 7, 9][..]));
    assert!(!world.told.iter().any(|told| matches!(told, Output::SaveTokens(_))), "they are in the file already");

    let partial = LifecycleConfig { tokens: vec![7, 5], join_after: SECOND, ..config() };
    let mut world = World::new(partial, Desc::default());
    world.pass(Duration::ZERO);
    assert_eq!((world.own().state, &*world.own().tokens), (Pending, &[5, 7][..]));
    world.pass(SECOND);
    assert_eq!((world.own().state, world.own().tokens.len()), (Active, 4));
    assert!(world.own().tokens.starts_with(&[5, 7]));
}

#[test]
fn a_restart_takes_up_the_entry_that_it_finds_in_each_state() {
    let restart = |found: Instance| {
        let found = Instance { read_only: true, read_only_updated_timestamp: 40, versions: [(1, 2)].into(), ..found };
        // Tokens of the file do not count when the ring has an entry.
        let config = LifecycleConfig { tokens: vec![100, 101, 102, 103], join_after: SECOND * 3600, ..config() };
        let mut world = World::new(config, ring([("me", found)]));
        world.pass(Duration::ZERO);
        let own = world.own().clone();
        assert_eq!((&*own.addr, &*own.zone, own.timestamp), ("me:1", "z", 1000));
        assert_eq!((own.registered_timestamp, own.read_only, own.read_only_updated_timestamp), (0, true, 40));
        assert_eq!(own.versions, [(1, 2)].into());
        assert_eq!(world.core.state(), own.state);
        (own.state, own.tokens.to_vec())
    };
    assert_eq!(restart(entry(Active, 500, &[1, 2])), (Active, vec![1, 2]));
    assert_eq!(restart(entry(Pending, 500, &[1])), (Pending, vec![1]));
    assert_eq!(restart(entry(Joining, 500, &[1, 2, 3, 4])), (Pending, vec![1, 2, 3, 4]));
    assert_eq!(restart(entry(Unknown(5), 500, &[1, 2, 3, 4])), (Pending, vec![1, 2, 3, 4]));
    assert_eq!(restart(entry(Leaving, 500, &[1, 2, 3, 4])), (Active, vec![1, 2, 3, 4]));
    let (state, tokens) = restart(entry(Leaving, 500, &[1, 2]));
    assert!(state == Active && tokens.len() == 4 && tokens.starts_with(&[1, 2]), "{tokens:?}");
    let (state, tokens) = restart(entry(Leaving, 500, &[1, 2, 3, 4, 5, 6, 7, 8, 9]));
    assert!(state == Active && tokens.len() == 4 && tokens != [1, 2, 3, 4], "{tokens:?}");
    let (state, tokens) = restart(entry(Active, 500, &[]));
    assert!(state == Active && tokens.len() == 4);
}

#[test]
fn a_restart_while_joining_goes_on_to_active() {
    // With the heartbeat of this very second, too: the entry that is written must be later.
    for timestamp in [500, 1000, 1500] {
        let mut world = World::new(config(), ring([("me", entry(Joining, timestamp, &[1, 2, 3, 4]))]));
        world.pass(SECOND);
        assert_eq!((world.own().state, &*world.own().tokens), (Active, &[1, 2, 3, 4][..]));
    }
}

#[test]
fn a_tombstone_of_an_earlier_life_is_no_entry_but_what_is_written_is_newer() {
    let buried = Instance { registered_timestamp: 1, ..entry(Left, 5000, &[]) };
    let mut world = World::new(config(), ring([("me", buried)]));
    world.pass(SECOND);
    assert_eq!((world.own().state, world.own().registered_timestamp), (Active, 1000));
    assert!(world.own().timestamp > 5000);
}

#[test]
fn tokens_that_somebody_else_takes_while_joining_are_replaced() {
    let mut world = World::new(LifecycleConfig { observe_period: SECOND * 10, ..config() }, Desc::default());
    world.pass(SECOND);
    let first = world.own().tokens.clone();
    // The other has a smaller id and so the better claim.
    world.store.instances.insert("a".into(), entry(Joining, 1000, &[first[0], first[2]]));
    // Of this one they are ours.
    world.store.instances.insert("z".into(), entry(Joining, 1000, &[first[1]]));
    world.pass(SECOND * 10);
    let second = world.own().tokens.clone();
    assert_eq!((world.own().state, second.len()), (Joining, 4));
    assert!(second.contains(&first[1]) && second.contains(&first[3]));
    assert!(!second.contains(&first[0]) && !second.contains(&first[2]));
    world.pass(SECOND * 10);
    assert_eq!((world.own().state, &world.own().tokens), (Active, &second));
}

#[test]
fn an_entry_that_vanished_or_was_buried_comes_back_with_its_tokens_and_its_registration() {
    for buried in [false, true] {
        let mut world = World::running(config());
        let before = world.own().clone();
        world.pass(SECOND * 30);
        if buried {
            let tombstone = world.own().tombstone(world.now.unix_secs());
            world.store.instances.insert("me".into(), tombstone);
        } else {
            world.store = Desc::default();
        }
        world.pass(SECOND * 6);
        let after = world.own();
        assert_eq!((after.state, &after.tokens), (Active, &before.tokens));
        assert_eq!(after.registered_timestamp, before.registered_timestamp);
    }
}

#[test]
fn what_is_observed_missing_or_changed_is_repaired_at_once_and_again_after_a_pause() {
    let mut world = World::running(config());
    let edits = world.edits.len();
    world.observe();
    assert_eq!(world.edits.len(), edits, "nothing was wrong");
    world.store = Desc::default();
    world.observe();
    assert_eq!((world.edits.len(), world.own().state), (edits + 1, Active));
    let stolen = Instance { timestamp: world.own().timestamp + 1, tokens: [1].into(), ..world.own().clone() };
    world.store.instances.insert("me".into(), stolen);
    world.observe();
    assert_eq!(world.edits.len(), edits + 1, "two instances with the same id must not race");
    world.pass(SECOND * 2);
    assert_eq!(world.own().tokens.len(), 4, "repaired before the heartbeat is due");
    // A watch that lags shows what we wrote before.
    let edits = world.edits.len();
    let old = Instance { timestamp: 5, state: Pending, ..world.own().clone() };
    world.give(Input::Observed { desc: Arc::new(ring([("me", old)])) });
    assert_eq!(world.edits.len(), edits);
}

#[test]
fn a_store_that_is_down_at_the_start_delays_the_registration_and_no_more() {
    let mut world = World::new(config(), Desc::default());
    world.down = true;
    world.pass(SECOND * 120);
    let pauses: Vec<Duration> = world.edits.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(pauses.iter().all(|pause| *pause >= MIN_BACKOFF && *pause <= SECOND * 5), "{pauses:?}");
    assert!((20..120).contains(&pauses.len()), "{}", pauses.len());
    assert_eq!(world.core.state(), Pending);
    assert!(!world.core.is_ready(world.now));
    world.down = false;
    world.pass(SECOND * 5);
    assert_eq!(world.own().state, Active);
}

#[test]
fn a_write_that_happened_although_it_failed_is_taken_up() {
    let mut world = World::new(config(), Desc::default());
    (world.down, world.writes_when_down) = (true, true);
    world.pass(SECOND);
    assert_eq!(world.own().state, Pending);
    world.down = false;
    world.pass(SECOND * 5);
    assert_eq!((world.own().state, world.own().tokens.len()), (Active, 4));
    assert_eq!(world.own().registered_timestamp, 1000);
}

#[test]
fn a_running_instance_outlives_its_store_and_beats_again_when_it_is_back() {
    let mut world = World::running(config());
    world.down = true;
    world.pass(SECOND * 600);
    assert_eq!((world.core.state(), world.core.tokens().len()), (Active, 4));
    world.down = false;
    let before = world.now.unix_secs();
    world.pass(SECOND * 5);
    assert!(world.own().timestamp >= before);
    assert_eq!(world.states(), [Active]);
}

#[test]
fn a_shutdown_leaves_sleeps_with_heartbeats_and_unregisters() {
    let mut world = World::running(LifecycleConfig { final_sleep: SECOND * 30, ..config() });
    world.give(Input::Shutdown);
    assert_eq!(world.own().state, Leaving);
    world.pass(SECOND * 29);
    assert_eq!(world.own().state, Leaving);
    assert!(world.now.unix_secs() - world.own().timestamp <= 6);
    assert!(!world.core.is_finished());
    // Asked again, it does not begin again.
    world.give(Input::Shutdown);
    world.pass(SECOND);
    assert_eq!((world.own().state, world.own().tokens.len()), (Left, 0));
    assert_eq!(world.told.last(), Some(&Output::Finished));
    assert_eq!((world.core.is_finished(), world.core.next_deadline()), (true, None));
}

#[test]
fn an_instance_that_stays_in_the_ring_keeps_its_tokens_for_the_next_life() {
    let config = LifecycleConfig { unregister_on_shutdown: false, ..config() };
    let mut world = World::running(config.clone());
    let tokens = world.own().tokens.clone();
    world.give(Input::Shutdown);
    assert_eq!((world.own().state, &world.own().tokens), (Leaving, &tokens));
    assert!(world.core.is_finished());
    let mut next = World::new(config, world.store);
    next.pass(SECOND);
    assert_eq!((next.own().state, &next.own().tokens), (Active, &tokens));
}

#[test]
fn a_shutdown_ends_in_bounded_time_without_the_store() {
    for (down_at_start, writes) in [(true, false), (false, false), (false, true)] {
        let mut world = World::new(LifecycleConfig { final_sleep: SECOND * 30, ..config() }, Desc::default());
        world.down = down_at_start;
        world.pass(SECOND * 2);
        (world.down, world.writes_when_down) = (true, writes);
        world.give(Input::Shutdown);
        world.pass(SECOND * 41);
        assert!(world.core.is_finished());
        assert_eq!(world.told.iter().filter(|told| **told == Output::Finished).count(), 1);
    }
    // Before anything was asked of the store there is nothing to take back.
    let mut world = World::new(config(), Desc::default());
    world.give(Input::Shutdown);
    assert!(world.core.is_finished() && world.edits.is_empty());
}

#[test]
fn a_shutdown_does_not_wait_for_an_answer_that_never_comes() {
    let now = Now { unix: SECOND * 1000, ..Now::read() };
    let mut core = Lifecycle::new(config(), SmallRng::seed_from_u64(1), now);
    core.handle(now, Input::Tick);
    assert!(matches!(core.poll_output(), Some(Output::Cas { id: 1, .. })));
    assert_eq!(core.next_deadline(), None, "there is one write at a time");
    core.handle(now + SECOND, Input::Shutdown);
    assert_eq!(core.poll_output(), None);
    let end = core.next_deadline().unwrap();
    assert_eq!(end, now.mono + SECOND * 6);
    core.handle(now + SECOND * 6, Input::Tick);
    assert_eq!(core.poll_output(), Some(Output::Finished));
    core.handle(now + SECOND * 7, Input::CasDone { id: 1, result: Err("late".into()) });
    assert_eq!((core.poll_output(), core.next_deadline()), (None, None));
}

#[test]
fn readiness_needs_an_active_entry_for_a_while_and_then_stays() {
    let mut world = World::new(LifecycleConfig { join_after: SECOND * 10, ..config() }, Desc::default());
    world.pass(SECOND * 9);
    assert!(world.core.not_ready_reason(world.now).unwrap().contains("PENDING"));
    world.pass(SECOND * 10);
    assert!(world.core.not_ready_reason(world.now).unwrap().contains("not yet for 15s"));
    assert!(!world.told.contains(&Output::Ready));
    world.pass(SECOND * 6);
    assert!(world.core.is_ready(world.now));
    world.down = true;
    world.pass(SECOND * 600);
    world.give(Input::Shutdown);
    assert!(world.core.is_ready(world.now));
    assert_eq!(world.told.iter().filter(|told| **told == Output::Ready).count(), 1);
}

#[test]
fn an_instance_whose_heartbeats_do_not_arrive_does_not_become_ready() {
    let mut world = World::running(LifecycleConfig { min_ready_duration: SECOND * 100, ..config() });
    world.down = true;
    world.pass(SECOND * 300);
    assert!(world.core.not_ready_reason(world.now).unwrap().contains("could not write a heartbeat"));
    world.down = false;
    world.pass(SECOND * 90);
    assert!(!world.core.is_ready(world.now));
    world.pass(SECOND * 20);
    assert!(world.core.is_ready(world.now));
}

#[test]
fn the_long_dead_are_forgotten_while_a_majority_of_the_others_lives() {
    let forgets = |others: &[(&'static str, i64)]| {
        let config = LifecycleConfig { auto_forget_unhealthy_periods: 10, ..config() };
        let mut world = World::running(config);
        for (id, age) in others {
            let timestamp = world.now.unix_secs() - age;
            world.store.instances.insert((*id).into(), entry(Active, timestamp, &[]));
        }
        world.pass(SECOND * 6);
        assert_eq!(world.own().state, Active);
        others.iter().map(|(id, _)| *id).filter(|id| world.store.instances[*id].state == Left).collect::<Vec<_>>()
    };
    assert_eq!(forgets(&[("dead", 700), ("b", 1), ("c", -500)]), ["dead"]);
    assert_eq!(forgets(&[("stale", 500), ("b", 1), ("c", 1)]), [""; 0]);
    // Half of them gone is more likely our clock or our view.
    assert_eq!(forgets(&[("dead", 700), ("b", 1)]), [""; 0]);
    assert_eq!(forgets(&[("dead", 700), ("b", 100), ("c", 100)]), [""; 0]);
    assert_eq!(forgets(&[("dead", 700)]), [""; 0]);
}

#[test]
fn a_clock_that_goes_back_does_not_make_changes_lose() {
    let mut world = World::running(config());
    world.pass(SECOND * 100);
    let before = world.own().timestamp;
    world.now.unix -= SECOND * 90;
    world.give(Input::SetReadOnly(true));
    assert!(world.own().read_only);
    assert!(world.own().timestamp > before && world.own().timestamp <= world.now.unix_secs() + 90);
    world.pass(SECOND * 10);
    assert!(world.own().timestamp > before);
    world.give(Input::Shutdown);
    assert_eq!(world.own().state, Left);
}

/// How old the own heartbeat looks to others, whose clocks are right, at most, in ten minutes after our clock went back
/// by two hours; `other` keeps beating.
fn oldest_after_a_jump(own_clock_was_right: bool) -> i64 {
    const JUMP: u64 = 7200;
    let mut world = World::new(config(), Desc::default());
    let mut truth = world.now.unix;
    if !own_clock_was_right {
        world.now.unix += SECOND * JUMP as u32;
    }
    let mut oldest = i64::MIN;
    for second in 0..900_u32 {
        truth += SECOND;
        if second % 15 == 0 {
            world.store.join(&ring([("other", entry(Active, truth.as_secs() as i64, &[1]))]), world.now);
        }
        if second == 300 {
            // Never below 1970: start late enough.
            world.now.unix = world.now.unix.saturating_sub(SECOND * JUMP as u32);
        }
        world.pass(SECOND);
        let age = truth.as_secs() as i64 - world.own().timestamp;
        if second >= 300 {
            oldest = oldest.max(age);
        }
        if !own_clock_was_right && second >= 300 {
            assert!(world.own().timestamp <= 1000 + 300 + JUMP as i64 + 2, "stays until the clock gets there");
        }
    }
    oldest
}

#[test]
fn a_clock_that_goes_back_by_hours_does_not_make_heartbeats_lose() {
    let oldest = oldest_after_a_jump(true);
    assert!(oldest < 40, "others saw a heartbeat of {oldest} s ago, and 60 s is dead");
    assert!(oldest_after_a_jump(false) < 0, "a clock that was ahead and is set right");
}

#[test]
fn states_go_forward_only_within_one_registration() {
    let config =
        LifecycleConfig { join_after: SECOND * 10, observe_period: SECOND * 10, final_sleep: SECOND * 10, ..config() };
    let mut world = World::new(config, ring([("other", entry(Active, 1000, &[1, 2]))]));
    let mut seen = vec![];
    for second in 0..120 {
        if second == 60 {
            world.give(Input::Shutdown);
        }
        // Damage on the way changes nothing about it.
        if second % 7 == 3 {
            world.store.instances.remove("me");
            world.observe();
        }
        world.pass(SECOND);
        if let Some(own) = world.store.instances.get("me").filter(|own| seen.last() != Some(&own.state)) {
            seen.push(own.state);
        }
    }
    assert_eq!(seen, [Pending, Joining, Active, Leaving, Left]);
    assert!(seen.is_sorted_by_key(|state| state.rank()));
}

#[test]
fn a_live_instance_keeps_its_tokens_against_a_merge_that_takes_them() {
    // A Grafana node resolves conflicts in the stored value: it takes the token of the larger id away.
    let mut world = World::running(config());
    let tokens = world.core.tokens().to_vec();
    let registered = world.own().registered_timestamp;
    let thief = Instance { timestamp: world.now.unix_secs(), ..entry(Active, 0, &tokens[..2]) };
    crate::ring::merge_dskit(&mut world.store, ring([("a-thief", thief)]), false, 0);
    assert_eq!(*world.own().tokens, tokens[2..]);
    world.pass(SECOND * 20);
    assert_eq!(*world.own().tokens, tokens[..]);
    assert_eq!((world.core.tokens(), world.own().registered_timestamp), (&tokens[..], registered));
}

#[test]
fn a_core_that_died_in_any_phase_is_resumed_where_it_was() {
    let config =
        LifecycleConfig { join_after: SECOND * 7, observe_period: SECOND * 9, final_sleep: SECOND * 11, ..config() };
    // Without a crash, then with one at each second, its write in flight lost.
    let mut ends = Vec::new();
    for crash in 0..60 {
        let mut world = World::new(config.clone(), Desc::default());
        for second in 0..60 {
            if second == 40 {
                world.give(Input::Shutdown);
            }
            if crash > 0 && second == crash {
                let mut doomed =
                    Lifecycle::resume(config.clone(), SmallRng::seed_from_u64(9), world.now, world.core.durable());
                doomed.handle(world.now, Input::Tick);
                world.core =
                    Lifecycle::resume(config.clone(), SmallRng::seed_from_u64(10), world.now, doomed.durable());
                while let Some(Output::Cas { id, .. }) = doomed.poll_output() {
                    world.give(Input::CasDone { id, result: Ok(None) });
                }
            }
            world.pass(SECOND);
        }
        assert!(world.core.is_finished(), "crash at {crash}");
        assert_eq!(world.own().registered_timestamp, 1000, "crash at {crash}");
        ends.push((world.states(), world.own().state));
    }
    assert_eq!(ends[0], (vec![Joining, Active, Leaving], Left));
    assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
}

#[test]
fn reads_only_is_written_with_its_time_and_survives_heartbeats() {
    let mut world = World::running(config());
    world.give(Input::SetReadOnly(true));
    assert_eq!((world.own().read_only, world.own().read_only_updated_timestamp), (true, 1001));
    let edits = world.edits.len();
    world.give(Input::SetReadOnly(true));
    assert_eq!(world.edits.len(), edits);
    world.pass(SECOND * 60);
    assert!(world.own().read_only);
    world.give(Input::SetReadOnly(false));
    assert_eq!((world.own().read_only, world.own().read_only_updated_timestamp), (false, 1061));
}
