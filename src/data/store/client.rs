//! Connections to stores: one client for each bucket and process.

use std::collections::HashMap;
use std::future::Future;
use std::mem;
use std::path::Path;
use std::process;
use std::sync::{Arc, Mutex, PoisonError};

use object_store::{ObjectStore, memory::InMemory, parse_url_opts, path::Path as Key};
use tokio::runtime::{Builder, Runtime};
use url::{Position, Url};

use crate::error::{Error, Result};

/// Threads that move bytes and encrypt them.
const THREADS: usize = 2;

/// What the variables of the environment that configure a store start with.
const VARIABLES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// The connections of this process.
struct Clients {
    /// A process that was forked must not use its parent's threads and sockets.
    process: u32,
    runtime: Arc<Runtime>,
    /// By what comes before the key in their URLs.
    stores: HashMap<String, Arc<dyn ObjectStore>>,
}

static CLIENTS: Mutex<Option<Clients>> = Mutex::new(None);

/// A store and the threads that its requests run on.
#[derive(Clone, Debug)]
pub struct Client {
    runtime: Arc<Runtime>,
    pub store: Arc<dyn ObjectStore>,
}

impl Client {
    /// The client of the store that a URL names, and the key within it.
    pub fn of(path: &Path) -> Result<(Client, Key)> {
        let bad = |found: String| {
            let expected = "the URL of an object, as in s3://bucket/folder/name";
            Error::argument("path", expected, format!("{} ({found})", path.display()))
        };
        let text = path.to_str().ok_or_else(|| bad("not UTF-8".into()))?;
        let url = Url::parse(text).map_err(|e| bad(e.to_string()))?;
        if url.host_str().is_none_or(str::is_empty) {
            return Err(bad("it names no bucket".into()));
        }
        // As it is written, and not decoded: a key may hold any character.
        let key = text.splitn(4, '/').nth(3).unwrap_or_default();
        let key = Key::parse(key.trim_end_matches('/')).map_err(|e| bad(e.to_string()))?;
        let place = url[..Position::BeforePath].to_string();

        let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(others) = clients.take_if(|clients| clients.process != process::id()) {
            // Dropping it would wait for threads that the parent has and this process has not.
            mem::forget(others);
        }
        let clients = match &mut *clients {
            Some(clients) => clients,
            none => none.insert(Clients::new().map_err(Error::io("start threads for", path))?),
        };
        let store = match clients.stores.get(&place) {
            Some(store) => store.clone(),
            None => {
                let store: Arc<dyn ObjectStore> = match url.scheme() {
                    "memory" => Arc::new(InMemory::new()),
                    // The library gives the key in the URL again, which is the one that was taken from it.
                    _ => parse_url_opts(&url, settings()).map_err(|e| bad(e.to_string()))?.0.into(),
                };
                clients.stores.entry(place).or_insert(store).clone()
            }
        };
        Ok((Client { runtime: clients.runtime.clone(), store }, key))
    }

    /// Waits for a request.
    pub fn wait<T>(&self, request: impl Future<Output = T>) -> T {
        self.runtime.block_on(request)
    }
}

impl Clients {
    fn new() -> std::io::Result<Clients> {
        // Fails where the program has chosen a provider already, which is used then.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
        Ok(Clients { process: process::id(), runtime: Arc::new(runtime), stores: HashMap::new() })
    }
}

/// Longest time of a request, in the library's words: a part of an upload on a slow line.
const TIMEOUT: (&str, &str) = ("timeout", "2m");

/// Credentials, region, endpoint and the like, from the variables that the stores' own programs use.
fn settings() -> impl Iterator<Item = (String, String)> {
    let ours = |name: &str| VARIABLES.iter().any(|start| name.starts_with(start));
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    let timeout = (TIMEOUT.0.to_string(), TIMEOUT.1.to_string());
    let given = std::env::vars_os()
        .filter_map(text)
        .filter(move |(name, _)| ours(name))
        .map(|(name, value)| (name.to_lowercase(), value));
    // What is given comes later, and counts.
    std::iter::once(timeout).chain(given)
}
