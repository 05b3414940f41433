//! The agent's own page: hand-written HTML, CSS and JavaScript inside the binary, usable offline.
//!
//! The page itself is always asked for again; the other files carry their hash in the path and may be
//! kept for ever.

use std::collections::BTreeMap;

use sky_chord::Id;
use warp::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use warp::reply::Response;

const HTML: &str = include_str!("index.html");

/// The other files, as `index.html` names them, with their media types.
const ASSETS: [(&str, &str, &str); 5] = [
    ("style.css", "text/css; charset=utf-8", include_str!("style.css")),
    ("page.js", "text/javascript; charset=utf-8", include_str!("page.js")),
    ("keys.js", "text/javascript; charset=utf-8", include_str!("keys.js")),
    ("parts.js", "text/javascript; charset=utf-8", include_str!("parts.js")),
    ("circle.js", "text/javascript; charset=utf-8", include_str!("circle.js")),
];

/// Nothing but the agent's own files, and nobody may frame the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// All files of the page by their paths.
#[derive(Debug)]
pub(crate) struct Page {
    files: BTreeMap<String, File>,
}

/// One file as it is sent.
#[derive(Debug)]
pub(crate) struct File {
    content_type: &'static str,
    cache: &'static str,
    body: bytes::Bytes,
}

impl Default for Page {
    fn default() -> Self {
        // One version for all, so that modules find each other by relative paths.
        let all: String = ASSETS.iter().map(|(_, _, body)| *body).collect();
        let version = &Id::hash(all.as_bytes()).to_string()[..12];
        let html = File {
            content_type: "text/html; charset=utf-8",
            cache: "no-cache",
            body: HTML.replace("{{version}}", version).into(),
        };
        let assets = ASSETS.iter().map(|(name, content_type, body)| {
            let cache = "public, max-age=31536000, immutable";
            (format!("/page/{version}/{name}"), File { content_type, cache, body: (*body).into() })
        });
        Self { files: assets.chain([("/".to_owned(), html)]).collect() }
    }
}

impl Page {
    /// The file at this path.
    pub(crate) fn find(&self, path: &str) -> Option<&File> {
        self.files.get(path)
    }
}

impl File {
    /// The file as an answer.
    pub(crate) fn response(&self) -> Response {
        let mut response = Response::new(self.body.clone().into());
        let headers: [(HeaderName, &'static str); 4] = [
            (header::CONTENT_TYPE, self.content_type),
            (header::CACHE_CONTROL, self.cache),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::REFERRER_POLICY, "no-referrer"),
        ];
        let value = |(name, text)| (name, HeaderValue::from_static(text));
        response.headers_mut().extend(headers.into_iter().map(value).collect::<HeaderMap>());
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_only_files_that_exist() {
        let page = Page::default();
        let html = String::from_utf8(page.find("/").unwrap().body.to_vec()).unwrap();
        let named: Vec<_> = html.split('"').filter(|text| text.starts_with("/page/")).collect();
        assert!(named.len() >= 2, "{named:?}");
        for path in named {
            assert!(page.find(path).is_some(), "{path}");
        }
        for (name, _, body) in ASSETS {
            for import in body.split("from \"./").skip(1) {
                let import = import.split('"').next().unwrap();
                assert!(ASSETS.iter().any(|(name, ..)| *name == import), "{import} in {name}");
            }
        }
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        for (name, _, body) in ASSETS.iter().chain(&[("index.html", "", HTML)]) {
            let outside = body.match_indices("://").filter(|(at, _)| {
                // The name of the SVG namespace is not an address.
                !body[at + 3..].starts_with("www.w3.org/2000/svg")
            });
            assert_eq!(outside.count(), 0, "{name}");
        }
    }
}
