//! The agents: real ones, started, killed, frozen and asked one by one.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

use sky_chord::{Id, Peer, Phase, Settings, View};

use crate::rig::{Kind, Rig, SLOTS, run, run_with};

/// Nodes that the ring begins with, and never has fewer than.
pub(crate) const BASE: usize = 5;

const PORT: u16 = 4321;
const RING: &str = "5eed0000000000000000000000000001";
/// Memory that an agent may use: many times what its data here could need.
const MEMORY_MAX: u64 = 1 << 30;
/// How long a container may resist being frozen.
const FROZEN_WITHIN: Duration = Duration::from_secs(20);
/// How long an agent may take to end when it is asked to.
const ENDED_WITHIN: Duration = Duration::from_secs(20);
/// How long an agent may take to report on itself.
const REPORT_WITHIN: Duration = Duration::from_secs(3);
const ASK_EVERY: Duration = Duration::from_millis(100);

/// What clients know of the agents.
#[derive(Debug, Default)]
pub(crate) struct Board([AtomicU8; SLOTS]);

/// How an agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// There is none in this place.
    Absent = 0,
    Running = 1,
    /// Killed, to be started again.
    Dead = 2,
    /// Frozen.
    Frozen = 3,
}

impl Board {
    pub(crate) fn get(&self, slot: usize) -> State {
        match self.0[slot].load(Relaxed) {
            1 => State::Running,
            2 => State::Dead,
            3 => State::Frozen,
            _ => State::Absent,
        }
    }

    fn set(&self, slot: usize, state: State) {
        self.0[slot].store(state as u8, Relaxed);
    }

    /// The places in this state.
    pub(crate) fn all(&self, state: State) -> Vec<usize> {
        (0..SLOTS).filter(|slot| self.get(*slot) == state).collect()
    }
}

/// All agents of a run.
pub(crate) struct Agents {
    pub(crate) rig: Rig,
    pub(crate) board: Arc<Board>,
    program: PathBuf,
    children: [Option<Child>; SLOTS],
    /// Those that hand over their data and will be taken away.
    leaving: [bool; SLOTS],
    http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    token: String,
}

/// An agent that is not as it was left.
pub(crate) struct Astray {
    pub(crate) slot: usize,
    /// Whether it ended by itself.
    pub(crate) ended: bool,
    pub(crate) what: String,
}

impl Agents {
    /// Starts the first agents and founds their ring.
    pub(crate) fn start(kind: Kind, program: &Path) -> Result<Self, String> {
        let mut agents = Self {
            rig: Rig::new(kind, program)?,
            board: Arc::default(),
            program: program.to_owned(),
            children: [const { None }; SLOTS],
            leaving: [false; SLOTS],
            http: reqwest::Client::builder().no_proxy().build().map_err(|e| e.to_string())?,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| error.to_string())?,
            token: format!("token of {}", std::process::id()),
        };
        for slot in 0..BASE {
            agents.launch(slot)?;
        }
        let begun = Instant::now();
        while let Err(error) = agents.admin(0, "/admin/init", &format!(r#"{{"ring":"{RING}"}}"#)) {
            if begun.elapsed() > Duration::from_secs(30) {
                return Err(format!("the ring cannot be founded: {error}"));
            }
            std::thread::sleep(ASK_EVERY);
        }
        Ok(agents)
    }

    pub(crate) fn url(&self, slot: usize) -> String {
        format!("http://{}:{PORT}", self.rig.node_address(slot))
    }

    /// Positions as `sky-deploy` gives them: evenly spaced, newcomers in the middle of an arc.
    fn id(slot: usize) -> Id {
        let first = if slot < BASE { slot * 256 / BASE } else { (slot - BASE) * 512 / BASE + 25 };
        let mut id = [0; 20];
        id[0] = u8::try_from(first).unwrap_or(u8::MAX);
        Id::from_bytes(id)
    }

    fn arguments(&self, slot: usize, data: &str) -> Vec<String> {
        let join: Vec<String> =
            (0..SLOTS).map(|slot| format!("{}:{PORT}", self.rig.node_address(slot))).collect();
        let arguments = [
            "--wait-for-init",
            "--name",
            &format!("n{slot}"),
            "--ip",
            &self.rig.node_address(slot).to_string(),
            "--port",
            &PORT.to_string(),
            "--id",
            &Self::id(slot).to_string(),
            "--data",
            data,
            "--log-format",
            "text",
            "--join",
            &join.join(","),
        ];
        arguments.map(str::to_owned).into()
    }

    fn container(&self, slot: usize) -> String {
        format!("{}-n{slot}", self.rig.name)
    }

    /// Starts the agent of a place, on the data it has there.
    pub(crate) fn launch(&mut self, slot: usize) -> Result<(), String> {
        match self.rig.kind {
            Kind::Processes => self.launch_process(slot)?,
            Kind::Containers => self.launch_container(slot)?,
        }
        self.board.set(slot, State::Running);
        Ok(())
    }

    fn launch_process(&mut self, slot: usize) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("n{slot} cannot be started: {error}");
        let log = fs::File::options().append(true).create(true).open(self.rig.log(slot));
        let log = log.map_err(failed)?;
        let space = format!("--net=/run/netns/{}", self.rig.namespace(slot));
        let data = self.rig.disk(slot).join("data");
        // The agent ends with this thread, however that ends.
        let child = Command::new("nsenter")
            .args([&space, "setpriv", "--pdeathsig", "KILL"])
            .arg(&self.program)
            .arg("agent")
            .args(self.arguments(slot, &data.to_string_lossy()))
            .envs([("SKY_SECRET", &self.token), ("SKY_TOKEN", &self.token)])
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            // A Ctrl-C is for the runner, which ends its agents itself.
            .process_group(0)
            .spawn();
        self.children[slot] = Some(child.map_err(failed)?);
        Ok(())
    }

    fn launch_container(&self, slot: usize) -> Result<(), String> {
        let name = self.container(slot);
        if run("docker", &["container", "inspect", &name]).is_ok() {
            return run("docker", &["start", &name]).map(drop);
        }
        let label = format!("sky.nemesis={}", std::process::id());
        let address = self.rig.node_address(slot).to_string();
        let disk = format!("type=bind,src={},dst=/disk", self.rig.disk(slot).display());
        let created = Command::new("docker")
            .args(["run", "--detach", "--name", &name, "--label", &label])
            .args(["--network", &self.rig.name, "--ip", &address, "--mount", &disk])
            .args(["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"])
            .args(["--env", "SKY_SECRET", "--env", "SKY_TOKEN", &self.rig.image])
            .args(self.arguments(slot, "/disk/data"))
            .envs([("SKY_SECRET", &self.token), ("SKY_TOKEN", &self.token)])
            .output()
            .map_err(|error| error.to_string())?;
        if created.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&created.stderr).into_owned();
        Err(format!("the container {name} cannot be made: {why}"))
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, slot: usize) -> Result<(), String> {
        // Who asks from now on knows that it is not there.
        self.board.set(slot, State::Dead);
        match self.rig.kind {
            Kind::Containers => {
                run("docker", &["kill", &self.container(slot)])?;
                // Its port is free and its data its own only when it is gone.
                run("docker", &["wait", &self.container(slot)]).map(drop)
            }
            Kind::Processes => match self.children[slot].take() {
                Some(mut child) => {
                    let killed = child.kill().and_then(|()| child.wait());
                    killed.map(drop).map_err(|error| error.to_string())
                }
                None => Ok(()),
            },
        }
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn stop(&mut self, slot: usize) -> Result<(), String> {
        self.board.set(slot, State::Dead);
        if self.rig.kind == Kind::Containers {
            let within = ENDED_WITHIN.as_secs().to_string();
            return run("docker", &["stop", "-t", &within, &self.container(slot)]).map(drop);
        }
        let Some(mut child) = self.children[slot].take() else { return Ok(()) };
        run("kill", &["-TERM", &child.id().to_string()])?;
        let begun = Instant::now();
        while begun.elapsed() < ENDED_WITHIN {
            if child.try_wait().map_err(|error| error.to_string())?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill().and_then(|()| child.wait()).map_err(|error| error.to_string())?;
        Err(format!("n{slot} did not end within {ENDED_WITHIN:?} after SIGTERM"))
    }

    pub(crate) fn freeze(&self, slot: usize) -> Result<(), String> {
        self.board.set(slot, State::Frozen);
        match self.rig.kind {
            Kind::Containers => {
                // On a busy machine, runc gives up on the freezer of cgroups v1 ("unable to freeze")
                // before all threads have come to a stop, and lets them go on.
                let begun = Instant::now();
                loop {
                    match run("docker", &["pause", &self.container(slot)]) {
                        Err(why)
                            if why.contains("unable to freeze")
                                && begun.elapsed() < FROZEN_WITHIN => {}
                        paused => return paused.map(drop),
                    }
                }
            }
            Kind::Processes => run("kill", &["-STOP", &self.pid(slot)?]).map(drop),
        }
    }

    pub(crate) fn thaw(&self, slot: usize) -> Result<(), String> {
        match self.rig.kind {
            Kind::Containers => run("docker", &["unpause", &self.container(slot)])?,
            Kind::Processes => run("kill", &["-CONT", &self.pid(slot)?])?,
        };
        self.board.set(slot, State::Running);
        Ok(())
    }

    fn pid(&self, slot: usize) -> Result<String, String> {
        match self.rig.kind {
            Kind::Containers => {
                let format = ["inspect", "--format", "{{.State.Pid}}"];
                let pid = run("docker", &[&format[..], &[&self.container(slot)]].concat())?;
                Ok(pid.trim().to_owned())
            }
            Kind::Processes => {
                let child = self.children[slot].as_ref().ok_or("no process is there")?;
                Ok(child.id().to_string())
            }
        }
    }

    /// Runs a program in the network of a node.
    pub(crate) fn inside(&self, slot: usize, command: &[&str], input: &str) -> Result<(), String> {
        let space = match self.rig.kind {
            Kind::Processes => format!("--net=/run/netns/{}", self.rig.namespace(slot)),
            Kind::Containers => format!("--net=/proc/{}/ns/net", self.pid(slot)?),
        };
        run_with("nsenter", &[&[space.as_str()][..], command].concat(), input).map(drop)
    }

    /// The agents that are not as they were left: they ended by themselves, or grew and grew.
    pub(crate) fn gone_astray(&mut self) -> Vec<Astray> {
        let mut astray = Vec::new();
        for slot in 0..SLOTS {
            if !matches!(self.board.get(slot), State::Running | State::Frozen) {
                continue;
            }
            let how = match self.rig.kind {
                Kind::Processes => match self.children[slot].as_mut().map(Child::try_wait) {
                    Some(Ok(Some(status))) => Some(status.to_string()),
                    _ => None,
                },
                Kind::Containers => {
                    let format = "{{.State.Running}} exit code {{.State.ExitCode}}";
                    let name = self.container(slot);
                    let state = run("docker", &["inspect", "--format", format, &name]);
                    state.ok().filter(|state| !state.starts_with("true"))
                }
            };
            if let Some(how) = how {
                self.board.set(slot, State::Dead);
                self.children[slot] = None;
                let what = format!("n{slot} ended by itself: {}", how.trim());
                astray.push(Astray { slot, ended: true, what });
            } else if let Some(bytes) = self.memory(slot).filter(|bytes| *bytes > MEMORY_MAX) {
                let mut what = format!("n{slot} uses {} MB of memory, and is killed", bytes >> 20);
                if let Err(error) = self.kill(slot) {
                    what = format!("{what}; {error}");
                }
                astray.push(Astray { slot, ended: false, what });
            }
        }
        astray
    }

    /// How much memory an agent uses, in bytes.
    fn memory(&self, slot: usize) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid(slot).ok()?)).ok()?;
        let used = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(used.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
    }

    /// Asks a node to leave. It is taken away when it has.
    pub(crate) fn leave(&mut self, slot: usize) -> Result<(), String> {
        self.leaving[slot] = true;
        self.admin(slot, "/admin/leave", "")
    }

    /// The places that are taken, in the order of the circle.
    pub(crate) fn in_order(&self) -> Vec<usize> {
        let mut there: Vec<usize> =
            (0..SLOTS).filter(|slot| self.board.get(*slot) != State::Absent).collect();
        there.sort_by_key(|slot| Self::id(*slot));
        there
    }

    /// Whether a node that is started again has lost its firewall and its queue.
    pub(crate) fn network_is_new_with_agent(&self) -> bool {
        self.rig.kind == Kind::Containers
    }

    /// Takes away those that have handed over everything; the disk of each is emptied. Who was down or
    /// not yet a member when it was asked to leave is asked again.
    pub(crate) fn take_away_drained(&mut self) -> Result<(), String> {
        for slot in 0..SLOTS {
            if !self.leaving[slot] || self.board.get(slot) != State::Running {
                continue;
            }
            let phase = self.view(slot).map(|view| view.phase);
            if phase == Some(Phase::Up) {
                self.admin(slot, "/admin/leave", "").ok();
            }
            if phase == Some(Phase::Drained) {
                self.stop(slot)?;
                self.board.set(slot, State::Absent);
                self.leaving[slot] = false;
                self.remove_container(slot)?;
                let data = self.rig.disk(slot).join("data");
                fs::remove_dir_all(data).map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    fn remove_container(&self, slot: usize) -> Result<(), String> {
        if self.rig.kind == Kind::Containers {
            self.save_container_log(slot);
            run("docker", &["rm", &self.container(slot)])?;
        }
        Ok(())
    }

    /// Where containers log, only the engine knows.
    fn save_container_log(&self, slot: usize) {
        let output = Command::new("docker").args(["logs", &self.container(slot)]).output();
        let log = fs::File::options().append(true).create(true).open(self.rig.log(slot));
        if let (Ok(output), Ok(mut log)) = (output, log) {
            log.write_all(&[output.stdout, output.stderr].concat()).ok();
        }
    }

    /// The logs of all, to be searched and kept.
    pub(crate) fn save_logs(&self) {
        if self.rig.kind == Kind::Containers {
            for slot in 0..SLOTS {
                if self.board.get(slot) != State::Absent {
                    self.save_container_log(slot);
                }
            }
        }
    }

    fn admin(&self, slot: usize, path: &str, body: &str) -> Result<(), String> {
        let url = format!("{}{path}", self.url(slot));
        let asking = async {
            let request = self.http.post(url).bearer_auth(&self.token).timeout(REPORT_WITHIN);
            let request = request.header("content-type", "application/json").body(body.to_owned());
            let answer = request.send().await.map_err(|error| error.to_string())?;
            if answer.status().is_success() {
                return Ok(());
            }
            Err(answer.text().await.unwrap_or_default())
        };
        self.runtime.block_on(asking)
    }

    /// What an agent reports of itself, if it answers.
    pub(crate) fn view(&self, slot: usize) -> Option<View> {
        let request = self.http.get(format!("{}/ring", self.url(slot))).timeout(REPORT_WITHIN);
        self.runtime.block_on(async { request.send().await.ok()?.json().await.ok() })
    }

    /// What is not right with the ring of all agents that are there, by the product's own definition.
    pub(crate) fn problems(&self) -> Vec<String> {
        let reports: Vec<(Peer, Option<View>)> = self
            .in_order()
            .into_iter()
            .map(|slot| {
                let view = self.view(slot);
                let address = format!("{}:{PORT}", self.rig.node_address(slot)).into();
                let node = sky_chord::NodeId { position: Self::id(slot), incarnation: 0 };
                let me = view.as_ref().map(|view| view.me.clone());
                (me.unwrap_or(Peer { node, address }), view)
            })
            .collect();
        let settings = Settings::default();
        let verdict = sky_chord::check(&reports, settings.replicas, settings.successors);
        let leaving = (0..SLOTS).filter(|slot| self.leaving[*slot]);
        let leaving = leaving.map(|slot| format!("n{slot} has not left yet."));
        verdict.problems.into_iter().chain(leaving).collect()
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
