//! News for a page that is open (server-sent events): the pieces of it that changed, each couple of seconds, and nothing where nothing did.
//!
//! All streams share one glance of the loop, so that who looks on costs the loop nothing; there is a bound to how many there are. A stream ends with its
//! session, with its connection (after ten minutes at the latest: the browser comes again), and with the agent.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Extension,
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http::{HeaderName, StatusCode, Uri, header};
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::{
    Site,
    enter::{Visit, field},
    look::Screen,
    pages::shell,
    session::Visitor,
};
use crate::{
    admin::api::{self, Problem, Stage},
    observed::monotonic,
};

/// From one look to the next.
const STEP: Duration = Duration::from_secs(2);
/// Where nothing changes, so often a word is sent by which both ends see whether the other one lives.
const QUIET: u32 = 7;

/// Begins a stream for the page at `at`.
pub(super) async fn live(State(site): State<Site>, Extension(visit): Extension<Visit>, uri: Uri) -> Result<Response, Problem> {
    let visitor = visit.visitor()?.clone();
    let address = field(uri.query().unwrap_or_default().as_bytes(), "at").unwrap_or_default();
    let screen = Screen::parse(&address).ok_or_else(|| Problem::of_status(StatusCode::NOT_FOUND))?;
    let seen = field(uri.query().unwrap_or_default().as_bytes(), "seen").unwrap_or_default();
    let Ok(place) = site.0.streams.clone().try_acquire_owned() else {
        let mut busy = Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too-many-streams",
            "Too many open pages",
            "so many pages are open that this one is not kept up to date",
        );
        busy.retry_after = Some(30);
        return Err(busy);
    };
    let (sender, news) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut stage = site.api().stage();
        tokio::select! {
            () = tell(&site, &visitor, &screen, shell::read_marks(&seen), &sender) => {}
            () = sender.closed() => {}
            _ = stage.wait_for(|stage| *stage >= Stage::Leaving) => {}
        }
        drop(place);
    });
    // Proxies such as nginx would keep it until there is a whole page of it.
    let kinds = [(header::CONTENT_TYPE, "text/event-stream"), (HeaderName::from_static("x-accel-buffering"), "no")];
    Ok((kinds, Body::new(News(news))).into_response())
}

/// What a stream says, as it comes.
struct News(mpsc::Receiver<Bytes>);

impl hyper::body::Body for News {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|news| news.map(|news| Ok(Frame::data(news))))
    }
}

/// Until nobody listens, or the session is over. `told` stands on the page already.
async fn tell(site: &Site, visitor: &Visitor, screen: &Screen, mut told: HashMap<String, u32>, sender: &mpsc::Sender<Bytes>) {
    let mut quiet = QUIET;
    // A browser waits so long before it comes again.
    if sender.send(Bytes::from_static(b"retry: 3000\n\n")).await.is_err() {
        return;
    }
    loop {
        if !lives(site, visitor) {
            let _ = sender.send(Bytes::from_static(b"event: over\ndata: {}\n\n")).await;
            return;
        }
        // What cannot be looked at now may be at the next step.
        let news = look(site, screen, &mut told).await.unwrap_or_default();
        quiet = if news.is_empty() { quiet + 1 } else { 0 };
        let text = if !news.is_empty() {
            format!("data: {}\n\n", serde_json::to_string(&news).unwrap_or_default())
        } else if quiet >= QUIET {
            quiet = 0;
            ": nothing new\n\n".to_owned()
        } else {
            String::new()
        };
        if !text.is_empty() && sender.send(text.into()).await.is_err() {
            return;
        }
        tokio::time::sleep(STEP).await;
    }
}

/// Whether it is still logged in. That it looks does not keep it so.
fn lives(site: &Site, visitor: &Visitor) -> bool {
    let Ok(settings) = site.api().settings() else { return false };
    site.sessions().find(&visitor.ticket, api::key_mark(&settings), false, monotonic()).is_some()
}

/// The pieces that are not as they were told.
async fn look(site: &Site, screen: &Screen, told: &mut HashMap<String, u32>) -> Result<BTreeMap<&'static str, String>, Problem> {
    let painted = screen.paint(site, false).await?;
    let live = shell::live(painted.tab, &painted.sight, &painted.parts);
    let mut is_new = |name: &str, html: &str| {
        let mark = shell::mark(html);
        told.insert(name.to_owned(), mark) != Some(mark)
    };
    Ok(live.into_iter().filter(|(name, html)| is_new(name, html)).collect())
}
