//! One write on its way to sq, with the guard before and behind it. It must run to its end, whatever becomes of the client: a task of its own.

use super::{
    forward::{Answer, Exchange, Failure, exchange, exchange_on},
    guardian::{Gone, Guardian, Ticket},
    problem::Problem,
    room::Growth,
    upstream::Upstream,
};
use crate::guard::wire::{Refusal, Sent, ToProxy, Verdict, Write};

/// Why a write has no answer of sq to pass on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// Nothing was written. The request may be sent elsewhere, where the failure says so.
    Failed(Failure),
    /// It is refused, or was undone: this is the answer.
    Refused(Problem),
    /// It was not sent: what an earlier write left is to be put back first, before the next start.
    NotBefore,
    /// It is undone before the next start: until then the file may show it.
    Undone,
}

impl From<Failure> for NoAnswer {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What goes with a write's request.
pub(crate) struct Guarded {
    pub(crate) write: Write,
    /// What is said where the file would be larger than before, and may not.
    pub(crate) growth: Growth,
    /// Makes sq read the phext from disk again.
    pub(crate) reload: Exchange,
}

impl Guarded {
    /// Sends it.
    pub(crate) async fn send(&self, guardian: &Guardian, request: &Exchange) -> Result<Answer, NoAnswer> {
        // sq gets its thread ready while the guard works.
        let (begun, connected) = tokio::join!(guardian.begin(&self.write), Upstream::connect(request.port));
        let ticket = match begun {
            Ok((ToProxy::Begun { reload, .. }, ticket)) => {
                if reload && let Err(failure) = self.reload().await {
                    ticket.end(Sent::Not).await.map_err(unknown)?;
                    return Err(failure.into());
                }
                ticket
            }
            Ok((ToProxy::Refused { why, .. }, _)) => return Err(self.refused(why)),
            Ok(_) | Err(Gone) => return Err(NoAnswer::Refused(Problem::NoGuard)),
        };
        let answer = match connected {
            Ok(stream) => exchange_on(stream, request).await,
            Err(refused) => Err(refused.into()),
        };
        let sent = match &answer {
            Ok(answer) => Sent::Answered { success: answer.status.is_success(), length: answer.length() },
            Err(Failure::Refused | Failure::WrongInstance) => Sent::Not,
            Err(Failure::Broken | Failure::TimedOut) => Sent::Unknown,
        };
        match ticket.end(sent).await.map_err(unknown)? {
            Verdict::Kept | Verdict::Untouched => Ok(answer?),
            Verdict::PutBack { .. } => Err(self.read_again(&ticket, Problem::NotStored).await?),
            Verdict::Outgrown => Err(self.read_again(&ticket, self.outgrown()).await?),
            Verdict::InDoubt { .. } => Err(NoAnswer::Undone),
        }
    }

    /// After the file was put back, sq still has in its memory what it could not write, and would write it next time.
    async fn read_again(&self, ticket: &Ticket, said: Problem) -> Result<NoAnswer, NoAnswer> {
        let done = self.reload().await.is_ok();
        let undone = ticket.reloaded(done).await.map_err(unknown)?;
        Ok(if undone { NoAnswer::Refused(said) } else { NoAnswer::Undone })
    }

    fn outgrown(&self) -> Problem {
        match self.growth {
            Growth::Refused(problem) => problem,
            Growth::Free => Problem::NotStored,
        }
    }

    async fn reload(&self) -> Result<(), Failure> {
        let answer = exchange(&self.reload).await?;
        if answer.status.is_success() { Ok(()) } else { Err(Failure::Broken) }
    }

    fn refused(&self, why: Refusal) -> NoAnswer {
        let id = &self.write.id;
        NoAnswer::Refused(match why {
            Refusal::InDoubt => return NoAnswer::NotBefore,
            Refusal::NoRoom { needs, free } => {
                tracing::warn!(tenant = %id, needs, free, "a write is refused: the disk has no room for it");
                Problem::NoRoom
            }
            Refusal::NoMemory { needs, limit } => Problem::NoMemory { needs, limit },
            Refusal::Grows => self.outgrown(),
            Refusal::Busy => Problem::QueueTimeout,
            Refusal::Files(why) => {
                tracing::error!(tenant = %id, why, "a write is refused: the tenant's files are not as they should be");
                Problem::Files
            }
        })
    }
}

/// The guard died over a write that was sent: whether its marker stands is not known.
fn unknown(_: Gone) -> NoAnswer {
    NoAnswer::Failed(Failure::Broken)
}
