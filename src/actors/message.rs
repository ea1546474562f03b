//! What all actors have in common: a shorthand for messages, and drills.

/// Declares what a message is answered with.
macro_rules! message {
    ($message:ty => $answer:ty) => {
        impl actix::Message for $message {
            type Result = $answer;
        }
    };
}
pub(crate) use message;

/// A fault that a drill makes happen in an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// The actor panics while it handles a message.
    Panic,
    /// The actor stops itself.
    Stop,
}

/// "Fail now": how drills and chaos tests kill an actor that is at work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drill(pub(crate) Fault);
message!(Drill => ());

/// Lets an actor take part in drills.
macro_rules! drillable {
    ($actor:ty) => {
        impl actix::Handler<$crate::actors::message::Drill> for $actor {
            type Result = ();

            fn handle(&mut self, drill: $crate::actors::message::Drill, ctx: &mut actix::Context<Self>) {
                match drill.0 {
                    $crate::actors::message::Fault::Panic => panic!("a drill asked for this panic"),
                    $crate::actors::message::Fault::Stop => actix::ActorContext::stop(ctx),
                }
            }
        }
    };
}
pub(crate) use drillable;
