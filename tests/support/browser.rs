//! A browser without a script: it keeps one cookie, says where its forms come from, and follows no redirect by itself.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;

use super::admin::{Admin, KEY, Said};

/// See the file's description.
#[derive(Debug, Clone)]
pub struct Browser {
    /// Where it looks.
    pub admin: Admin,
    /// Its cookie, as it sends it.
    pub cookie: Option<String>,
    /// What it says of where its forms come from.
    pub origin: String,
}

impl Browser {
    /// One that knows nothing yet.
    pub fn new(port: u16) -> Self {
        Self { admin: Admin::tcp(port).with_key(None), cookie: None, origin: format!("http://127.0.0.1:{port}") }
    }

    /// One that is logged in.
    pub async fn logged_in(port: u16) -> Self {
        let mut browser = Self::new(port);
        let said = browser.log_in(KEY, "").await;
        assert_eq!((said.status, location(&said)), (303, "/".to_owned()), "{said:?}");
        browser
    }

    /// Sends the form of the log-in.
    pub async fn log_in(&mut self, key: &str, more: &str) -> Said {
        let key: String = form_urlencoded::byte_serialize(key.as_bytes()).collect();
        let said = self.post("/login", &format!("key={key}{more}")).await;
        if let Some(cookie) = said.headers.get("set-cookie") {
            self.cookie = cookie.to_str().unwrap().split(';').next().map(str::to_owned);
        }
        said
    }

    /// A page.
    pub async fn get(&self, target: &str) -> Said {
        self.send(Request::get(target)).await
    }

    /// The text of a page that must be there.
    pub async fn page(&self, target: &str) -> String {
        let said = self.get(target).await;
        assert_eq!(said.status, 200, "{target}: {}", text(&said));
        text(&said)
    }

    /// A form, as it stands.
    pub async fn post(&self, target: &str, form: &str) -> Said {
        let request = Request::post(target).header("content-type", "application/x-www-form-urlencoded").header("origin", &self.origin);
        self.send_with(request, form).await
    }

    /// Opens a page with a form, and sends that with a reason.
    pub async fn submit(&self, target: &str, more: &str) -> Said {
        let page = self.page(target).await;
        let path = target.split('?').next().unwrap();
        self.post(path, &format!("token={}{more}", token(&page))).await
    }

    async fn send(&self, request: http::request::Builder) -> Said {
        self.send_with(request, "").await
    }

    /// A request of the caller's making.
    pub async fn send_with(&self, request: http::request::Builder, body: &str) -> Said {
        let mut request = request.header("accept", "text/html,application/xhtml+xml");
        if let Some(cookie) = &self.cookie {
            request = request.header("cookie", cookie);
        }
        self.admin.send_raw(request.body(Full::from(Bytes::from(body.to_owned()))).unwrap()).await.unwrap()
    }

    /// The same by another method.
    pub async fn ask(&self, method: Method, target: &str) -> Said {
        self.send(Request::builder().method(method).uri(target)).await
    }
}

/// A body as text.
pub fn text(said: &Said) -> String {
    String::from_utf8(said.body.to_vec()).unwrap()
}

/// Where it leads.
pub fn location(said: &Said) -> String {
    said.headers.get("location").map(|location| location.to_str().unwrap().to_owned()).unwrap_or_default()
}

/// The token of the last form on a page: the first is that of the log-out, and both have the same.
pub fn token(page: &str) -> String {
    let (_, rest) = page.rsplit_once("name=\"token\" value=\"").unwrap_or_else(|| panic!("no form: {page}"));
    rest.split('"').next().unwrap().to_owned()
}
