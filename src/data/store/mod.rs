//! Objects by URL: Amazon S3 and what speaks its protocol (`s3://bucket/key`), Google Cloud Storage (`gs://bucket/key`) and
//! Azure Blob Storage (`az://container/key`), with feature `cloud`.
//!
//! Wherever a file is read or written, a path may be such a URL. An object is read in ranges, each held to the version that
//! was opened, so that memory does not grow with its length. It is written under no name first, in a temporary file, and
//! uploaded when it is complete: in one request, or in parts that become visible together. Nobody sees a half of it.
//!
//! Stores have no locks. What several processes may write at once is put on condition that nobody wrote it meanwhile
//! ([`Object::replace`]).

use std::path::Path;

#[cfg(feature = "cloud")]
mod client;
#[cfg(feature = "cloud")]
mod object;
#[cfg(not(feature = "cloud"))]
mod without;

#[cfg(feature = "cloud")]
pub use object::Object;
#[cfg(not(feature = "cloud"))]
pub use without::Object;

/// Schemes of URLs that name objects.
const SCHEMES: [&str; 5] = ["s3", "gs", "az", "abfs", "abfss"];

/// Whether a path is the URL of an object, or of a prefix of several, and not that of a file.
pub fn is_url(path: &Path) -> bool {
    let scheme = path.to_str().and_then(|text| text.split_once("://")).map(|(scheme, _)| scheme);
    // Tests of this crate use a store in memory.
    let tested = cfg!(feature = "internals") && scheme == Some("memory");
    tested || scheme.is_some_and(|scheme| SCHEMES.contains(&scheme))
}

/// What tells an object from what was at its place before and after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// The tag that the store gave it.
    pub tag: Option<String>,
    /// The number of its version, where the store counts them.
    pub number: Option<String>,
}

/// What a store says of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectState {
    /// Length in bytes.
    pub len: u64,
    /// Which of the objects that were ever there.
    pub version: Version,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_known_by_their_schemes() {
        for url in ["s3://bucket", "gs://bucket/key", "az://container/a/b"] {
            assert!(is_url(Path::new(url)), "{url}");
        }
        for path in ["/s3/bucket", "s3:/bucket", "s3", "file:///tmp/x", "a/s3://b", "C://x"] {
            assert!(!is_url(Path::new(path)), "{path}");
        }
    }
}
