//! The one timer of an actor around a core: wakes it at the core's next deadline.

use std::time::Instant;

use actix::{Actor, AsyncContext, Context, SpawnHandle};

/// Remembers what is armed, so that an unchanged deadline costs nothing.
#[derive(Default)]
pub(crate) struct CoreTimer {
    armed: Option<(Instant, SpawnHandle)>,
}

impl CoreTimer {
    /// Arms the timer for `deadline`, or disarms it. `fire` must begin with [`CoreTimer::fired`].
    pub(crate) fn arm<A>(&mut self, deadline: Option<Instant>, ctx: &mut Context<A>, fire: fn(&mut A, &mut Context<A>))
    where
        A: Actor<Context = Context<A>>,
    {
        if self.armed.as_ref().map(|(at, _)| *at) == deadline {
            return;
        }
        if let Some((_, handle)) = self.armed.take() {
            ctx.cancel_future(handle);
        }
        if let Some(at) = deadline {
            let wait = at.saturating_duration_since(Instant::now());
            self.armed = Some((at, ctx.run_later(wait, fire)));
        }
    }

    /// The timer has gone off and is no longer armed.
    pub(crate) fn fired(&mut self) {
        self.armed = None;
    }
}
