//! One object, or the prefix of several, as files and folders are used.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{
    Error as StoreError, GetOptions, GetRange, MultipartUpload, ObjectMeta, ObjectStoreExt, PutMode,
    PutResult, UpdateVersion, path::Path as Key,
};

use super::client::Client;
use super::{ObjectState, Version};
use crate::data::fault::change;
use crate::error::{Error, Result};

/// Bytes of a request for a range.
const PIECE: u64 = 16 << 20;
/// Bytes of a part of an upload, unless the store's limit on parts needs longer ones. Stores allow so many requests a second
/// that shorter ones would be what holds up a large run.
const PART: u64 = 32 << 20;
/// Requests of one object that are under way at once: each is in memory.
const AT_ONCE: usize = 3;
/// Pauses between attempts of a put on condition: the first, which doubles each time, and the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(15);
/// Most parts of an upload, over all stores.
const MOST_PARTS: u64 = 10_000;

/// An object, or a prefix of several.
#[derive(Clone, Debug)]
pub struct Object {
    client: Client,
    key: Key,
    path: PathBuf,
}

impl Object {
    /// The object that a URL names. No request is made.
    ///
    /// # Errors
    /// A URL that names no bucket, or settings in the environment that do not go together.
    pub fn at(path: &Path) -> Result<Object> {
        let (client, key) = Client::of(path)?;
        Ok(Object { client, key, path: path.to_path_buf() })
    }

    /// What is there; None where nothing is.
    pub fn state(&self) -> Result<Option<ObjectState>> {
        match self.client.wait(self.client.store.head(&self.key)) {
            Ok(meta) => Ok(Some(state(&meta))),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("open", error)),
        }
    }

    /// The same, where something is to be there.
    pub fn found(&self) -> Result<ObjectState> {
        let missing = || io::Error::new(ErrorKind::NotFound, "no such object");
        self.state()?.ok_or_else(|| Error::io("open", &self.path)(missing()))
    }

    /// The objects directly below this prefix, with their names and lengths, by name.
    pub fn list(&self) -> Result<Vec<(String, u64)>> {
        let prefix = Some(&self.key).filter(|key| !key.as_ref().is_empty());
        let list = self.client.wait(self.client.store.list_with_delimiter(prefix));
        let list = list.map_err(|e| self.failed("list", e))?;
        let named = |meta: &ObjectMeta| Some((meta.location.filename()?.to_string(), meta.size));
        let mut found: Vec<_> = list.objects.iter().filter_map(named).collect();
        found.sort();
        Ok(found)
    }

    /// Whether there are objects below this prefix.
    pub fn is_folder(&self) -> Result<bool> {
        let first = self.client.wait(self.client.store.list(Some(&self.key)).next());
        first.map_or(Ok(false), |found| found.map(|_| true).map_err(|e| self.failed("list", e)))
    }

    /// Fills `out` with the bytes from `at` of the version `of`, in several requests at once where they are many.
    ///
    /// # Errors
    /// [`Error::Changed`] if another version is there by now.
    pub fn read(&self, of: &Version, at: u64, out: &mut [u8]) -> Result<()> {
        let end = at + out.len() as u64;
        let pieces = (at..end).step_by(PIECE as usize).zip(out.chunks_mut(PIECE as usize));
        let requests = pieces.map(|(at, out)| async move {
            let bytes = self.range(of, at..at + out.len() as u64).await?;
            match bytes.len() == out.len() {
                true => out.copy_from_slice(&bytes),
                false => return Err(self.changed("it is shorter than when it was opened")),
            }
            Ok(())
        });
        self.client.wait(stream::iter(requests).buffer_unordered(AT_ONCE).try_collect())
    }

    async fn range(&self, of: &Version, range: Range<u64>) -> Result<Bytes> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: of.tag.clone(),
            ..GetOptions::default()
        };
        let bytes = async { self.client.store.get_opts(&self.key, options).await?.bytes().await };
        bytes.await.map_err(|error| match error {
            StoreError::Precondition { .. } => self.changed("another object took its place"),
            StoreError::NotFound { .. } => self.changed("it was removed"),
            error => self.failed("read", error),
        })
    }

    /// The first `most` + 1 bytes of an object, one more than its caller wants, and its state.
    pub fn read_small(&self, most: u64) -> Result<(Vec<u8>, ObjectState)> {
        let state = self.found()?;
        let mut bytes = vec![0; state.len.min(most + 1) as usize];
        self.read(&state.version, 0, &mut bytes)?;
        Ok((bytes, state))
    }

    /// A temporary file with the object's bytes, which is gone once it is closed.
    pub fn download(&self) -> Result<File> {
        let state = self.found()?;
        let file = self.temporary()?;
        file.set_len(state.len).map_err(Error::io("write", &self.path))?;
        let pieces = (0..state.len).step_by(PIECE as usize).map(|at| {
            let (file, version) = (&file, &state.version);
            async move {
                let bytes = self.range(version, at..(at + PIECE).min(state.len)).await?;
                file.write_all_at(&bytes, at).map_err(Error::io("write", &self.path))
            }
        });
        self.client.wait(stream::iter(pieces).buffer_unordered(AT_ONCE).try_collect::<()>())?;
        Ok(file)
    }

    /// A file in the folder for temporary files (`TMPDIR`) that has no name.
    pub fn temporary(&self) -> Result<File> {
        tempfile::tempfile().map_err(Error::io("create a temporary file for", &self.path))
    }

    /// Uploads a file. Nothing is seen before all of it is there; what was there is replaced then.
    pub fn upload(&self, file: &File) -> Result<()> {
        let len = file.metadata().map_err(Error::io("read", &self.path))?.len();
        let uploaded = change(
            || self.client.wait(self.upload_pieces(file, len)).map_err(io::Error::other),
            |()| format!("upload {}", self.path.display()),
        );
        uploaded.map_err(|error| match error.downcast::<StoreError>() {
            Ok(error) => self.failed("write", error),
            Err(error) => Error::io("write", &self.path)(error),
        })?;
        match self.state()?.map(|state| state.len) {
            Some(found) if found == len => Ok(()),
            found => {
                let found = found.map_or("no object".into(), |len| format!("{len} bytes"));
                let (path, expected) = (self.path.clone(), format!("{len} bytes"));
                Err(Error::Mismatch { path, what: "length after the upload".into(), expected, found })
            }
        }
    }

    async fn upload_pieces(&self, file: &File, len: u64) -> Result<(), StoreError> {
        let store = &self.client.store;
        if len <= PART {
            return store.put(&self.key, read_piece(file, 0..len)?.into()).await.map(drop);
        }
        let mut upload = store.put_multipart(&self.key).await?;
        let piece = PART.max(len.div_ceil(MOST_PARTS));
        let result = upload_parts(upload.as_mut(), file, len, piece).await;
        if result.is_err() {
            // Parts that are left behind cost money; the error that led here is the one to report.
            let _ = upload.abort().await;
        }
        result
    }

    /// Puts bytes in the place of the version `of`, or of nothing where that is None, and gives their version.
    ///
    /// # Errors
    /// [`Error::Busy`] if something else is there: another process has written it.
    pub fn replace(&self, bytes: &[u8], of: Option<&Version>) -> Result<Version> {
        let mode = match of.cloned() {
            None => PutMode::Create,
            Some(Version { tag, number }) => PutMode::Update(UpdateVersion { e_tag: tag, version: number }),
        };
        let payload = Bytes::copy_from_slice(bytes);
        let put = change(
            || self.client.wait(self.put_patiently(&payload, mode)).map_err(io::Error::other),
            |_| format!("replace {}", self.path.display()),
        );
        match put.map(version).map_err(|error| error.downcast::<StoreError>()) {
            Ok(version) => Ok(version),
            Err(Ok(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. })) => {
                // An answer that got lost is asked for again, and then our own bytes are in the way.
                match self.read_small(bytes.len() as u64) {
                    Ok((found, state)) if found == bytes => Ok(state.version),
                    _ => Err(Error::Busy { path: self.path.clone() }),
                }
            }
            Err(Ok(error)) => Err(self.failed("write", error)),
            Err(Err(error)) => Err(Error::io("write", &self.path)(error)),
        }
    }

    /// A put on condition, again where nobody knows what came of it: the library repeats only what does no harm twice.
    async fn put_patiently(&self, bytes: &Bytes, mode: PutMode) -> Result<PutResult, StoreError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let put = self.client.store.put_opts(&self.key, bytes.clone().into(), mode.clone().into()).await;
            match put {
                Err(StoreError::Generic { .. }) if pause <= LAST_PAUSE => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                other => return other,
            }
        }
    }

    /// Removes the object.
    pub fn remove(&self) -> Result<()> {
        let removed = change(
            || self.client.wait(self.client.store.delete(&self.key)).map_err(io::Error::other),
            |()| format!("remove {}", self.path.display()),
        );
        removed.map_err(Error::io("remove", &self.path))
    }

    fn changed(&self, how: &str) -> Error {
        Error::Changed { path: self.path.clone(), how: how.into() }
    }

    /// A store's answer as the system's would be.
    fn failed(&self, action: &'static str, error: StoreError) -> Error {
        let kind = match &error {
            StoreError::NotFound { .. } => ErrorKind::NotFound,
            StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
                ErrorKind::PermissionDenied
            }
            // The library tells the refusal of a listing in words alone.
            other
                if ["403 Forbidden", "401 Unauthorized"]
                    .iter()
                    .any(|words| other.to_string().contains(words)) =>
            {
                ErrorKind::PermissionDenied
            }
            _ => ErrorKind::Other,
        };
        let hint = match kind {
            ErrorKind::PermissionDenied => "; the credentials in the environment do not allow it",
            _ => "",
        };
        // One line, whatever the server sent.
        let text = format!("{error}{hint}").split_whitespace().collect::<Vec<_>>().join(" ");
        Error::io(action, &self.path)(io::Error::new(kind, text))
    }
}

fn state(meta: &ObjectMeta) -> ObjectState {
    let version = Version { tag: meta.e_tag.clone(), number: meta.version.clone() };
    ObjectState { len: meta.size, version }
}

fn version(put: PutResult) -> Version {
    Version { tag: put.e_tag, number: put.version }
}

fn read_piece(file: &File, range: Range<u64>) -> Result<Bytes, StoreError> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    let read = file.read_exact_at(&mut bytes, range.start);
    read.map_err(|e| StoreError::Generic { store: "temporary file", source: e.into() })?;
    Ok(bytes.into())
}

/// Uploads pieces, a few at once, and has the store put them together.
async fn upload_parts(
    upload: &mut dyn MultipartUpload,
    file: &File,
    len: u64,
    piece: u64,
) -> Result<(), StoreError> {
    // Parts are numbered as they are begun, which is in order; each begins when one before it is done.
    let parts = (0..len).step_by(piece as usize).map(|at| {
        let bytes = read_piece(file, at..(at + piece).min(len));
        bytes.map(|bytes| upload.put_part(bytes.into()))
    });
    stream::iter(parts).try_buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    upload.complete().await.map(drop)
}
