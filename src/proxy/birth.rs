//! The start of a new proxy process, up to the moment when it serves, or its end if it does not in time.

use std::{
    fs::{self, OpenOptions, Permissions},
    io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::{
            fs::{OpenOptionsExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};

use super::{
    attached::{Proxy, SupervisorError, io_error},
    control::{ToAgent, ToProxy},
    network::JoinNetwork,
    standing::control_path,
};
use crate::framed::send;
use crate::{crash_point, route::Side, telemetry};

/// A proxy serves within 50 ms; one that does not in this time most likely does not work.
const COMES_UP: Duration = Duration::from_secs(5);
/// Or the host is slow beyond measure, as one may be that starts everything at once: each that came up too late doubles the time of the next one,
/// up to this.
const COMES_UP_AT_LAST: Duration = Duration::from_secs(40);

/// A proxy that cannot go on ends within milliseconds.
const BY_ITSELF: Duration = Duration::from_millis(300);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// All of the agent's environment that the proxy sees: how to log.
const LOGGING: [&str; 2] = [telemetry::FILTER_VARIABLE, telemetry::FORMAT_VARIABLE];

/// What a new proxy is given.
pub(super) struct Outfit<'a> {
    pub(super) state_dir: &'a Path,
    pub(super) exe: &'a Path,
    pub(super) network: Option<&'a JoinNetwork>,
    /// Settings, and their descriptors.
    pub(super) settings: (ToProxy, Vec<BorrowedFd<'a>>),
    /// It must serve within this.
    pub(super) patience: Duration,
}

/// How long the next proxy has to come up, behind so many that came up too late.
pub(super) fn patience(late: u32) -> Duration {
    COMES_UP.saturating_mul(2_u32.saturating_pow(late)).min(COMES_UP_AT_LAST)
}

/// Starts a proxy on `side`, which nobody may have. It serves when this returns; where this fails, it is gone.
pub(super) async fn bear(side: Side, outfit: Outfit<'_>) -> Result<Proxy, SupervisorError> {
    let path = control_path(outfit.state_dir, side);
    let mut child = spawn(&path, &outfit)?;
    crash_point::reached("proxy.spawned");
    let why = match timeout(outfit.patience, raise(&path, side, &outfit)).await {
        Ok(Ok(mut proxy)) => {
            (proxy.child, proxy.up) = (Some(child), true);
            crash_point::reached("proxy.serves");
            return Ok(proxy);
        }
        Ok(Err(why)) => Box::new(why),
        Err(_) => Box::new(SupervisorError::Late(outfit.patience)),
    };
    let exit = bury(&mut child).await;
    Err(SupervisorError::Stillborn { exit, log: outfit.state_dir.join("proxy.log"), why })
}

/// Ends a proxy that does not come up. One that ends by itself is left the moment to say why.
async fn bury(child: &mut Child) -> String {
    let by_itself = async {
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return status;
            }
            sleep(LOOK_AGAIN).await;
        }
    };
    if let Ok(status) = timeout(BY_ITSELF, by_itself).await {
        return status.to_string();
    }
    // It is our child and not yet reaped, so its number is its own.
    let _ = child.kill();
    child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
}

fn spawn(path: &Path, outfit: &Outfit<'_>) -> Result<Child, SupervisorError> {
    let run = outfit.state_dir.join("run");
    fs::create_dir_all(&run).map_err(io_error("make", &run))?;
    let control = bind_private(path)?;
    let log = |name: &str| {
        let path = outfit.state_dir.join(name);
        OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(io_error("open", &path))
    };
    Command::new(outfit.exe)
        .arg("proxy")
        .stdin(Stdio::from(OwnedFd::from(control)))
        .stdout(log("access.log")?)
        .stderr(log("proxy.log")?)
        .env_clear()
        .envs(LOGGING.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .current_dir("/")
        .spawn()
        .map_err(io_error("start", outfit.exe))
}

/// Tells a new proxy all that it must know, and waits until it serves.
async fn raise(path: &Path, side: Side, outfit: &Outfit<'_>) -> Result<Proxy, SupervisorError> {
    let stream = UnixStream::connect(path).await.map_err(io_error("connect to", path))?;
    let (mut proxy, _) = Proxy::greeted(stream, side).await?;
    if let Some(network) = outfit.network {
        send(&proxy.stream, &ToProxy::Join { user: network.user.is_some() }, &network.descriptors()).await?;
    }
    proxy.give_guard(outfit.exe, outfit.state_dir).await?;
    send(&proxy.stream, &outfit.settings.0, &outfit.settings.1).await?;
    loop {
        match proxy.word().await? {
            Some(ToAgent::Applied { .. }) => return Ok(proxy),
            Some(ToAgent::Refused { why, .. }) => return Err(SupervisorError::Refused(why)),
            Some(_) => {}
            None => return Err(SupervisorError::Closed),
        }
    }
}

/// A socket at `path` for this user alone, in place of whatever stood there.
fn bind_private(path: &Path) -> Result<UnixListener, SupervisorError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", path)(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(io_error("listen on", path))?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(io_error("protect", path))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_that_comes_up_too_late_gives_the_next_one_more_time() {
        let seconds: Vec<_> = [0, 1, 2, 3, 4, 40].map(|late| patience(late).as_secs()).into();
        assert_eq!(seconds, [5, 10, 20, 40, 40, 40]);
    }
}
