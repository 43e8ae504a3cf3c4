//! What stands for objects in a build without feature `cloud`: nothing, since none can be opened.

use std::fs::File;
use std::path::Path;

use super::{ObjectState, Version};
use crate::error::{Error, Result};

/// No object.
#[derive(Clone, Debug)]
pub enum Object {}

impl Object {
    pub fn at(path: &Path) -> Result<Object> {
        let expected = "a file: this build has no object stores (feature `cloud`)";
        Err(Error::argument("path", expected, path.display()))
    }

    pub fn state(&self) -> Result<Option<ObjectState>> {
        match *self {}
    }

    pub fn found(&self) -> Result<ObjectState> {
        match *self {}
    }

    pub fn list(&self) -> Result<Vec<(String, u64)>> {
        match *self {}
    }

    pub fn is_folder(&self) -> Result<bool> {
        match *self {}
    }

    pub fn read(&self, _of: &Version, _at: u64, _out: &mut [u8]) -> Result<()> {
        match *self {}
    }

    pub fn read_small(&self, _most: u64) -> Result<(Vec<u8>, ObjectState)> {
        match *self {}
    }

    pub fn download(&self) -> Result<File> {
        match *self {}
    }

    pub fn temporary(&self) -> Result<File> {
        match *self {}
    }

    pub fn upload(&self, _file: &File) -> Result<()> {
        match *self {}
    }

    pub fn replace(&self, _bytes: &[u8], _of: Option<&Version>) -> Result<Version> {
        match *self {}
    }

    pub fn remove(&self) -> Result<()> {
        match *self {}
    }
}
