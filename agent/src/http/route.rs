//! The table of routes: the paths of the interface, their methods, and who may call them. The router is
//! made of it, and so is the OpenAPI document.

use sky_api::path;
use warp::http::Method;

use super::guard::Access;

/// One path of the interface, or all of one form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Keys,
    Key,
    Batch,
    Lookup,
    Ring,
    RingDot,
    Local,
    Watch,
    WatchKey,
    Events,
    Healthz,
    Readyz,
    Metrics,
    OpenApi,
    Page,
    PageFile,
    Init,
    Leave,
    Force,
}

const READ: (&[Method], &str) = (&[Method::GET, Method::HEAD], "GET, HEAD");
const CHANGE: (&[Method], &str) = (&[Method::POST], "POST");
const KEY: (&[Method], &str) = (
    &[Method::GET, Method::HEAD, Method::PUT, Method::POST, Method::DELETE],
    "GET, HEAD, PUT, POST, DELETE",
);

impl Route {
    /// All of them, as the document lists them.
    pub(super) const ALL: [Self; 19] = [
        Self::Keys,
        Self::Key,
        Self::Batch,
        Self::Lookup,
        Self::Ring,
        Self::RingDot,
        Self::Local,
        Self::Watch,
        Self::WatchKey,
        Self::Events,
        Self::Healthz,
        Self::Readyz,
        Self::Metrics,
        Self::OpenApi,
        Self::Page,
        Self::PageFile,
        Self::Init,
        Self::Leave,
        Self::Force,
    ];

    /// The path, with its variable parts in braces.
    pub(super) const fn template(self) -> &'static str {
        match self {
            Self::Keys => path::KV,
            Self::Key => "/kv/{key}",
            Self::Batch => path::BATCH,
            Self::Lookup => "/lookup/{key}",
            Self::Ring => path::RING,
            Self::RingDot => path::RING_DOT,
            Self::Local => path::LOCAL,
            Self::Watch => path::WATCH,
            Self::WatchKey => "/watch/{key}",
            Self::Events => path::EVENTS,
            Self::Healthz => path::HEALTHZ,
            Self::Readyz => path::READYZ,
            Self::Metrics => path::METRICS,
            Self::OpenApi => path::OPENAPI,
            Self::Page => "/",
            Self::PageFile => "/page/{version}/{file}",
            Self::Init => path::INIT,
            Self::Leave => path::LEAVE,
            Self::Force => path::FORCE,
        }
    }

    /// Whether the path is this one, or of this form. A key may hold slashes.
    pub(super) fn is_at(self, path: &str) -> bool {
        match self {
            Self::Key => path.starts_with("/kv/"),
            Self::Lookup => path.starts_with("/lookup/"),
            Self::WatchKey => path.starts_with("/watch/"),
            Self::PageFile => path.starts_with("/page/"),
            exact => path == exact.template(),
        }
    }

    /// The route of a path.
    pub(super) fn of(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|route| route.is_at(path))
    }

    /// The methods, and as the `Allow` header has them.
    const fn verbs(self) -> (&'static [Method], &'static str) {
        match self {
            Self::Key => KEY,
            Self::Batch | Self::Init | Self::Leave | Self::Force => CHANGE,
            _ => READ,
        }
    }

    /// The methods that exist here.
    pub(super) const fn methods(self) -> &'static [Method] {
        self.verbs().0
    }

    /// Their names for the `Allow` header.
    pub(super) const fn allow(self) -> &'static str {
        self.verbs().1
    }

    /// Who may call it.
    pub(super) const fn access(self) -> Access {
        match self {
            // Whether the agent works, and what holds nothing of the ring.
            Self::Healthz | Self::Readyz | Self::OpenApi | Self::Page | Self::PageFile => {
                Access::Open
            }
            Self::Init | Self::Leave | Self::Force => Access::Administrators,
            _ => Access::Clients,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_one_route() {
        for route in Route::ALL {
            let path = route.template().replace(['{', '}'], "");
            let found: Vec<_> = Route::ALL.into_iter().filter(|it| it.is_at(&path)).collect();
            assert_eq!(found, [route], "{path}");
            let allow: Vec<_> = route.methods().iter().map(Method::as_str).collect();
            assert_eq!(route.allow(), allow.join(", "), "{path}");
        }
        assert_eq!(Route::of("/kv/a/b"), Some(Route::Key));
        for path in ["/kvx", "/lookup", "/ring/", "/page", "", "*"] {
            assert_eq!(Route::of(path), None, "{path}");
        }
    }
}
