//! What a new proxy hears before it serves: in which network it is to work, and its first settings. Blocking, since it must still be one thread
//! to join a namespace and to give up its rights.

use std::os::{
    fd::OwnedFd,
    unix::net::{UnixListener, UnixStream},
};

use super::{
    control::{Hello, ToAgent, ToProxy},
    conversation::{is_owner, settings_descriptors},
    live::{BadSettings, Live},
    network,
    process::{ProxyError, doing},
    settings::Settings,
};
use crate::framed::{ControlError, Decoder, WireError, receive_blocking, send_blocking};

/// The first conversation, up to settings that can be served by.
pub(crate) struct First {
    pub(crate) stream: UnixStream,
    pub(crate) decoder: Decoder,
    pub(crate) received: Received,
    /// The way to the guard.
    pub(crate) guard: OwnedFd,
    pub(crate) serial: u64,
    pub(crate) side: u8,
    pub(crate) run_as: Option<(u32, u32)>,
    /// Whose agent may command the process: its user, as it is called where the process is now.
    pub(crate) owner: u32,
    /// It joined a user namespace, where it is nobody the host knows.
    pub(crate) in_user_namespace: bool,
}

/// Settings as they came, with what was made of them.
pub(crate) struct Received {
    pub(crate) live: Live,
    pub(crate) listeners: Listeners,
}

/// What is listened on.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// HTTPS.
    pub(crate) tls: Vec<OwnedFd>,
    /// Plain HTTP.
    pub(crate) plain: Vec<OwnedFd>,
}

/// Makes something to serve by of settings and their descriptors.
pub(crate) fn take(
    settings: &Settings,
    (listeners, plain): (usize, usize),
    decoder: &mut Decoder,
) -> Result<Result<Received, BadSettings>, WireError> {
    let (mut tls, [routes, activity, meters]) = settings_descriptors(decoder, listeners)?;
    let plain = tls.split_off(listeners.saturating_sub(plain));
    let listeners = Listeners { tls, plain };
    Ok(Live::new(settings, routes, activity, meters).map(|live| Received { live, listeners }))
}

/// Waits for an agent and hears its first words; an agent that goes away before the end is followed by another.
pub(crate) fn hear(control: &UnixListener, hello: &Hello) -> Result<First, ProxyError> {
    let mut in_user_namespace = false;
    loop {
        let (stream, _) = control.accept().map_err(doing("accept the agent"))?;
        if !is_owner(&stream, owner()) {
            continue;
        }
        match hear_one(&stream, hello, &mut in_user_namespace) {
            Ok(Some(Heard { settings, serial, decoder, received, guard })) => {
                let (side, run_as) = (settings.side, settings.run_as);
                return Ok(First { stream, decoder, received, guard, serial, side, run_as, owner: owner(), in_user_namespace });
            }
            Ok(None) => {}
            Err(FirstWordsError::Control(error)) => tracing::warn!(%error, "the agent's first words"),
            Err(FirstWordsError::Join(error)) => return Err(doing("join the instances' network")(error)),
        }
    }
}

/// The user of this process, and of its agent, as the process's user namespace calls them.
fn owner() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[derive(Debug, thiserror::Error)]
enum FirstWordsError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Join(std::io::Error),
}

impl From<WireError> for FirstWordsError {
    fn from(error: WireError) -> Self {
        Self::Control(error.into())
    }
}

struct Heard {
    settings: Box<Settings>,
    serial: u64,
    decoder: Decoder,
    received: Received,
    guard: OwnedFd,
}

/// Waits for settings that are good; `None` when the agent went away.
fn hear_one(stream: &UnixStream, hello: &Hello, in_user_namespace: &mut bool) -> Result<Option<Heard>, FirstWordsError> {
    send_blocking(stream, &ToAgent::Hello(hello.clone()))?;
    let mut decoder = Decoder::default();
    let mut guard = None;
    while let Some(word) = receive_blocking::<ToProxy>(stream, &mut decoder)? {
        match word {
            ToProxy::Join { user } => {
                let user = if user { Some(decoder.descriptor()?) } else { None };
                let net = decoder.descriptor()?;
                network::join(user.as_ref(), &net).map_err(FirstWordsError::Join)?;
                *in_user_namespace |= user.is_some();
            }
            ToProxy::Guard => guard = Some(decoder.descriptor()?),
            ToProxy::Settings { settings, listeners, plain, serial } => match take(&settings, (listeners, plain), &mut decoder)? {
                Ok(received) => {
                    let guard = guard.ok_or(WireError::MissingDescriptors(1))?;
                    return Ok(Some(Heard { settings, serial, decoder, received, guard }));
                }
                Err(why) => send_blocking(stream, &ToAgent::Refused { serial, why: why.to_string() })?,
            },
            // It will be said again, and what is there is good until then.
            ToProxy::AccessLog => drop(decoder.descriptor()?),
            ToProxy::Shutdown { .. } => std::process::exit(0),
        }
    }
    Ok(None)
}
