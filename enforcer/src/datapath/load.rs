//! Loads the kernel side against the maps that are pinned already, after comparing them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData};
use aya::programs::{Program, ProgramError, SchedClassifier, SockOps};
use aya::{Ebpf, EbpfError, EbpfLoader};

use super::attach::{Hook, Side, Way};
use super::bpffs::{BpffsError, ensure_bpffs};
use super::lock::{AgentLock, LockError};
use super::pin::{self, Pins};
use super::{entry, migrate, sockets, sys};

/// The kernel side as it was built with this binary.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer-ebpf"));

/// The ring buffer of the kernel side's debug lines; belongs to one load, so it is not pinned.
const LOG_MAP: &str = "AYA_LOGS";
/// The place where a program keeps its decision about the packet at hand.
const SCRATCH: &str = "SCRATCH";
const LOG_LEVEL: &str = "AYA_LOG_LEVEL";

/// How to open the datapath.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Folder of the pins, on bpffs or to be mounted as one.
    pub bpffs: PathBuf,
    /// Entries of maps by name, where they differ from the built-in sizes.
    pub sizes: BTreeMap<String, u32>,
    /// Level of the kernel side's debug lines (`log::Level` as a number); 0 is off and free.
    pub log_level: u8,
    /// The hook to use.
    pub hook: Hook,
    /// Refuse a pinned map whose number of entries differs from what is asked for. Otherwise its size stays, with a
    /// warning, because its content is worth more than its size.
    pub strict_sizes: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            bpffs: pin::DEFAULT_DIR.into(),
            sizes: BTreeMap::new(),
            log_level: 0,
            hook: Hook::Auto,
            strict_sizes: false,
        }
    }
}

/// Why the datapath cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No bpffs.
    #[error(transparent)]
    Bpffs(#[from] BpffsError),
    /// Another agent.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A pinned map is not what this version would make.
    #[error("pinned map {} has {property} {found} where this version needs {wanted}: what is pinned still enforces; \
             to replace it run `enforcer detach --bpffs {}` and start again", .path.display(), .dir.display())]
    Mismatch {
        /// The pin.
        path: PathBuf,
        /// The folder.
        dir: PathBuf,
        /// What differs.
        property: &'static str,
        /// In the pinned map.
        found: u32,
        /// In this version.
        wanted: u32,
    },
    /// A pin cannot be read, made or removed.
    #[error("cannot {action} {}: {source}", .path.display())]
    Pin {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A size was given for a map that does not exist.
    #[error("there is no map {0} whose size could be set")]
    UnknownMap(String),
    /// A map of the object could not be opened.
    #[error("cannot open the pinned map {}: {source}", .path.display())]
    Map {
        /// The pin.
        path: PathBuf,
        /// What aya said.
        source: aya::maps::MapError,
    },
    /// The object could not be parsed.
    #[error("the built-in kernel object cannot be read: {0}")]
    Object(#[from] aya_obj::ParseError),
    /// The object could not be loaded.
    #[error("the kernel refuses the maps of the kernel side: {0}")]
    Load(#[from] EbpfError),
    /// A program is missing or of the wrong type.
    #[error("the built-in kernel object has no classifier {0}: build the agent anew")]
    NoProgram(&'static str),
    /// The verifier refused a program.
    #[error("the kernel refuses program {name}: {message}")]
    Program {
        /// The program.
        name: String,
        /// The end of the verifier's log.
        message: String,
    },
}

/// The loaded datapath: programs and maps. Dropping it detaches nothing.
#[derive(Debug)]
pub struct Datapath {
    pub(super) pins: Pins,
    pub(super) hook: Hook,
    pub(super) cookie: u64,
    /// Through which pods' own devices reach the programs for them; `None`: not loaded yet.
    pub(super) pod_programs: Option<OwnedFd>,
    ebpf: Ebpf,
    warnings: Vec<String>,
    carried: Vec<&'static str>,
    _lock: AgentLock,
}

/// What an agent, dead or alive, has pinned; for readers.
#[derive(Clone, Debug)]
pub struct Pinned {
    pins: Pins,
}

/// A pinned program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PinnedProgram {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u32,
}

impl Datapath {
    /// Takes the folder's lock, verifies what is pinned, loads and pins the rest. Attaches nothing yet: what an earlier
    /// agent attached goes on with its own programs until [`Datapath::attach`] replaces them.
    ///
    /// # Errors
    /// See [`OpenError`]; what was pinned before stays as it was.
    pub fn open(options: &OpenOptions) -> Result<Self, OpenError> {
        ensure_bpffs(&options.bpffs, true)?;
        let lock = AgentLock::take(&options.bpffs)?;
        let pins = Pins::new(&options.bpffs);
        pins.create().map_err(|e| pin_error("create folders in", pins.dir(), e))?;
        let cookie = sys::netns_cookie()
            .map_err(|e| pin_error("identify the network namespace for", pins.dir(), e))?;

        let object = aya_obj::Object::parse(OBJECT)?;
        let migrate::Carried { maps: carried, mut warnings } = migrate::carry(&pins, &object)
            .map_err(|e| pin_error("take over the maps of an earlier version in", pins.dir(), e))?;
        let mut loader = EbpfLoader::new();
        if let Some(name) = options.sizes.keys().find(|name| !object.maps.contains_key(*name)) {
            return Err(OpenError::UnknownMap(name.clone()));
        }
        for (name, map) in object.maps.iter().filter(|(name, map)| is_pinned(name, map)) {
            let path = pins.maps().join(name);
            let wanted = options.sizes.get(name).copied();
            if let Some(entries) =
                verify(&path, pins.dir(), map, wanted, options.strict_sizes, &mut warnings)?
            {
                loader.map_max_entries(name, entries);
            } else if let Some(entries) = wanted {
                loader.map_max_entries(name, entries);
            }
            loader.map_pin_path(name, path);
        }
        loader.override_global(LOG_LEVEL, &options.log_level, false);
        let mut ebpf = loader.load(OBJECT)?;
        for way in Way::BOTH {
            load_classifier(&mut ebpf, way.program_at(Side::Host))?;
        }
        if let Some(Err(error)) = ebpf.program_mut(sockets::PROGRAM).map(load_socket_program) {
            warnings.push(format!("ends of connections are told by their packets alone: {error}"));
        }
        let datapath = Self {
            pins,
            hook: options.hook,
            cookie,
            pod_programs: None,
            ebpf,
            warnings,
            carried,
            _lock: lock,
        };
        datapath.pin_programs(Side::Host)?;
        Ok(datapath)
    }

    /// Loads what works on pods' own devices, and puts it where the entry programs go on: those of an earlier agent go on in it
    /// at once. Nothing to do the second time. Takes as long as loading the others, so it is not done before it is needed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn prepare_inside(&mut self) -> Result<(), OpenError> {
        if self.pod_programs.is_some() {
            return Ok(());
        }
        for way in Way::BOTH {
            load_classifier(&mut self.ebpf, way.program_at(Side::Pod))?;
        }
        self.pin_programs(Side::Pod)?;
        let path = self.pins.maps().join(entry::PROGRAMS);
        let failed = |e| pin_error("fill", &path, e);
        let array = entry::array(&self.pins).map_err(failed)?;
        for way in Way::BOTH {
            let program = self.program(way, Side::Pod).map_err(failed)?;
            sys::set_program(array.as_fd(), entry::index(way), program).map_err(failed)?;
        }
        self.pod_programs = Some(array);
        Ok(())
    }

    /// What an operator should know of the opening, one sentence each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Maps that were taken over from an earlier layout.
    #[must_use]
    pub fn carried(&self) -> &[&'static str] {
        &self.carried
    }

    /// Where the pins are.
    #[must_use]
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// A map, to be read or written in place.
    pub fn map_mut(&mut self, name: &str) -> Option<&mut Map> {
        self.ebpf.map_mut(name)
    }

    /// A map, taken out for good.
    pub fn take_map(&mut self, name: &str) -> Option<Map> {
        self.ebpf.take_map(name)
    }

    /// The loaded object, for aya-log and for programs beyond the two classifiers.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// The descriptor of a loaded classifier.
    pub(super) fn program(&self, way: Way, side: Side) -> io::Result<BorrowedFd<'_>> {
        match self.ebpf.program(way.program_at(side)) {
            Some(Program::SchedClassifier(program)) => Ok(program.fd().map_err(io::Error::other)?.as_fd()),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    /// The descriptor of the program that sees sockets; `None` when the kernel did not take it.
    pub(super) fn socket_program(&self) -> Option<BorrowedFd<'_>> {
        match self.ebpf.program(sockets::PROGRAM) {
            Some(Program::SockOps(program)) => program.fd().ok().map(|fd| fd.as_fd()),
            _ => None,
        }
    }

    /// Pins the programs, each under a passing name first so that there is one at every moment.
    fn pin_programs(&self, side: Side) -> Result<(), OpenError> {
        for way in Way::BOTH {
            let path = self.pins.programs().join(way.program_at(side));
            let new = self.pins.programs().join(format!("{}-new", way.program_at(side)));
            let failed = |e| pin_error("pin", &path, e);
            pin::remove(&new).map_err(failed)?;
            sys::pin(self.program(way, side).map_err(failed)?, &new).map_err(failed)?;
            fs::rename(&new, &path).map_err(failed)?;
        }
        Ok(())
    }

    /// Removes maps and programs of earlier layouts. Call it when every interface is attached: until then their
    /// programs are the ones that enforce.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn retire_old_versions(&self) -> io::Result<Vec<PathBuf>> {
        let old = self.pins.other_versions()?;
        for version in &old {
            super::detach::remove_version(version, &mut super::detach::Removed::default())?;
        }
        Ok(old)
    }
}

impl Pinned {
    /// Looks at the folder; mounts and creates nothing.
    ///
    /// # Errors
    /// When there is no bpffs, or nothing of this layout is pinned in it.
    pub fn open(bpffs: &Path) -> Result<Self, OpenError> {
        ensure_bpffs(bpffs, false)?;
        let pins = Pins::new(bpffs);
        if !pins.maps().is_dir() {
            return Err(BpffsError::Missing { at: bpffs.to_owned() }.into());
        }
        Ok(Self { pins })
    }

    /// Where the pins are.
    #[must_use]
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Opens a pinned map.
    ///
    /// # Errors
    /// When it is not there.
    pub fn map(&self, name: &str) -> Result<Map, OpenError> {
        let path = self.pins.maps().join(name);
        MapData::from_pin(&path)
            .and_then(Map::from_map_data)
            .map_err(|source| OpenError::Map { path, source })
    }

    /// The pinned programs.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn programs(&self) -> Result<Vec<PinnedProgram>, OpenError> {
        let dir = self.pins.programs();
        let mut all = Vec::new();
        for name in pin::names(&dir).map_err(|e| pin_error("read", &dir, e))? {
            let path = dir.join(&name);
            let info = aya::programs::ProgramInfo::from_pin(&path)
                .map_err(|e| pin_error("read", &path, io::Error::other(e)))?;
            all.push(PinnedProgram { name, id: info.id() });
        }
        Ok(all)
    }

    /// True while an agent holds the folder.
    #[must_use]
    pub fn agent(&self) -> Option<LockError> {
        AgentLock::held(self.pins.dir())
    }
}

fn load_classifier(ebpf: &mut Ebpf, name: &'static str) -> Result<(), OpenError> {
    let program: &mut SchedClassifier = ebpf
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(OpenError::NoProgram(name))?;
    match program.load() {
        // A try before this one got as far.
        Err(ProgramError::AlreadyLoaded) => Ok(()),
        result => result.map_err(|e| refused(name, &e)),
    }
}

fn load_socket_program(program: &mut Program) -> Result<(), OpenError> {
    let program: &mut SockOps = program.try_into().map_err(|_| OpenError::NoProgram(sockets::PROGRAM))?;
    program.load().map_err(|e| refused(sockets::PROGRAM, &e))
}

pub(super) fn pin_error(action: &'static str, path: &Path, source: io::Error) -> OpenError {
    OpenError::Pin { action, path: path.to_owned(), source }
}

/// The end of the verifier's log says what is wrong; the beginning is thousands of lines.
pub(super) fn refused(name: &str, error: &ProgramError) -> OpenError {
    let text = error.to_string();
    let lines: Vec<_> = text.lines().collect();
    let message = lines[lines.len().saturating_sub(20)..].join("\n");
    OpenError::Program { name: name.into(), message }
}

/// Maps of globals and debug lines belong to one load.
fn is_pinned(name: &str, map: &aya_obj::Map) -> bool {
    map.data().is_empty() && !name.starts_with('.') && ![LOG_MAP, SCRATCH].contains(&name)
}

/// Compares a pinned map with the object's definition, because aya takes whatever it finds. Gives the number of
/// entries of an existing map, `None` when there is none.
fn verify(
    path: &Path,
    dir: &Path,
    map: &aya_obj::Map,
    wanted: Option<u32>,
    strict: bool,
    warnings: &mut Vec<String>,
) -> Result<Option<u32>, OpenError> {
    let fd: OwnedFd = match sys::open(path) {
        Ok(fd) => fd,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(pin_error("open", path, e)),
    };
    let map_error = |source| OpenError::Map { path: path.to_owned(), source };
    let info = MapData::from_fd(fd).and_then(|data| data.info()).map_err(map_error)?;
    let found_type = info.map_type().map_err(map_error)? as u32;
    let mismatch = |property, found, wanted| OpenError::Mismatch {
        path: path.to_owned(),
        dir: dir.to_owned(),
        property,
        found,
        wanted,
    };
    for (property, found, needed) in [
        ("type", found_type, map.map_type()),
        ("key size", info.key_size(), map.key_size()),
        ("value size", info.value_size(), map.value_size()),
        ("flags", info.map_flags(), map.map_flags()),
    ] {
        if found != needed {
            return Err(mismatch(property, found, needed));
        }
    }
    let needed = entries(map, wanted);
    if info.max_entries() != needed {
        if strict {
            return Err(mismatch("max_entries", info.max_entries(), needed));
        }
        warnings.push(format!(
            "map {} keeps its {} entries, not {needed}: run `enforcer detach --bpffs {}` before the start to change it",
            path.display(),
            info.max_entries(),
            dir.display()
        ));
    }
    Ok(Some(info.max_entries()))
}

/// The number of entries that the loader would give the map: ring buffers are rounded to pages and powers of two.
fn entries(map: &aya_obj::Map, wanted: Option<u32>) -> u32 {
    let entries = wanted.unwrap_or(map.max_entries());
    if map.map_type() == aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32 {
        entries.max(4096).next_power_of_two()
    } else {
        entries
    }
}
