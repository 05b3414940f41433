//! A real browser for tests, and the page in it as a user sees it.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "this is test code")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use fantoccini::elements::Element;
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper::Method;
use hyper_util::client::legacy::connect::HttpConnector;
use reqwest::Url;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// How long the ring may take to be right, on a busy machine.
pub(super) const RIGHT_WITHIN: Duration = Duration::from_secs(90);
/// How long anything else on the page may take.
pub(super) const SOON: Duration = Duration::from_secs(20);

/// A program of this test, ended with it.
pub(super) struct Running(Child);

impl Running {
    /// Starts a program and reads its output until `found` finds something in a line.
    pub(super) fn start<T: Send + 'static>(
        command: &mut Command,
        found: impl Fn(&str) -> Option<T> + Send + 'static,
    ) -> (Self, T) {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            // The output is read to its end, so that the program never waits for its reader.
            for line in lines.map_while(Result::ok) {
                // Shown if the test fails, but never a token.
                println!("{}", line.split("#token=").next().unwrap());
                if let Some(found) = found(&line) {
                    let _ = sender.send(found);
                }
            }
        });
        let running = Self(child);
        let found = receiver.recv_timeout(RIGHT_WITHIN);
        (running, found.unwrap_or_else(|_| panic!("{command:?} did not say what was expected")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.0);
        let _ = kill_process(pid, Signal::TERM);
        let _ = self.0.wait();
    }
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The browser and its driver; says what is skipped without them.
pub(super) fn browser() -> Option<(PathBuf, PathBuf)> {
    let chromium = ["chromium", "chromium-browser", "google-chrome"].into_iter().find_map(in_path);
    let found = chromium.zip(in_path("chromedriver"));
    if found.is_none() {
        let how = "Chromium or chromedriver is missing: `apt-get install chromium chromium-driver`";
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{how}");
        // Written past the test harness, which hides what a test prints unless it fails.
        let _ = writeln!(std::io::stderr(), "skipped: the dashboard in a browser. {how}");
    }
    found
}

async fn connect(chromium: &Path, driver: u16) -> Client {
    let arguments = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1400,1000",
    ];
    let mut capabilities = serde_json::Map::new();
    capabilities
        .insert("goog:chromeOptions".to_owned(), json!({"binary": chromium, "args": arguments}));
    ClientBuilder::new(HttpConnector::new())
        .capabilities(capabilities)
        .connect(&format!("http://127.0.0.1:{driver}"))
        .await
        .unwrap()
}

/// The page in a browser of its own, which ends when this is called to end it.
pub(super) async fn open(chromium: &Path, chromedriver: &Path) -> (Page, Running) {
    let (driver, port) = Running::start(Command::new(chromedriver).arg("--port=0"), |line| {
        line.strip_suffix('.')?.rsplit_once("successfully on port ")?.1.parse().ok()
    });
    (Page(connect(chromium, port).await), driver)
}

/// The page, as a user sees it.
pub(super) struct Page(pub(super) Client);

impl Page {
    pub(super) async fn wait(&self, css: &str, at_most: Duration) -> Element {
        let found = self.0.wait().at_most(at_most).for_element(Locator::Css(css)).await;
        match found {
            Ok(element) => element,
            Err(error) => panic!("{css} did not appear: {error}\n{}", self.text("main").await),
        }
    }

    /// The text of a part of the page, as soon as it is there: the page makes parts anew at any moment.
    pub(super) async fn text(&self, css: &str) -> String {
        let script = "return document.querySelector(arguments[0])?.innerText";
        for _ in 0..100 {
            let text = self.0.execute(script, vec![css.into()]).await.unwrap();
            match text.as_str() {
                Some(text) => return text.trim().to_owned(),
                None => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        panic!("there is no {css}");
    }

    /// Waits until a part of the page says something.
    pub(super) async fn says(&self, css: &str, words: &str) {
        let saying = async {
            while !self.text(css).await.contains(words) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        if tokio::time::timeout(SOON, saying).await.is_err() {
            panic!("{css} does not say `{words}`: {}", self.text(css).await);
        }
    }

    pub(super) async fn count(&self, css: &str) -> usize {
        self.0.find_all(Locator::Css(css)).await.unwrap().len()
    }

    pub(super) async fn click(&self, css: &str) {
        self.wait(css, SOON).await.click().await.unwrap();
    }

    pub(super) async fn fill(&self, css: &str, text: &str) {
        let field = self.wait(css, SOON).await;
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    pub(super) async fn run(&self, script: &str) -> Value {
        self.0.execute(script, Vec::new()).await.unwrap()
    }

    /// Has the browser do what only its own protocol offers.
    pub(super) async fn devtools(&self, command: &'static str, parameters: Value) {
        self.0.issue_cmd(DevTools(command, parameters)).await.unwrap();
    }

    /// Looks like this to the page: its size, and whether the user wants it dark.
    pub(super) async fn screen(&self, width: u32, height: u32, dark: bool) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", media).await;
    }

    /// Writes a picture into the folder that `SKY_PICTURES` names, if it names one.
    pub(super) async fn look(&self, name: &str) {
        let Some(folder) = std::env::var_os("SKY_PICTURES") else { return };
        let picture = self.0.screenshot().await.unwrap();
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), picture).unwrap();
    }

    /// Fails if something sticks out of the page to the right, or labels of the ring lie over another.
    pub(super) async fn is_tidy(&self) {
        let overflow = "return document.documentElement.scrollWidth > innerWidth";
        assert_eq!(self.run(overflow).await, json!(false), "nothing sticks out");
        let overlaps = "const boxes = [...document.querySelectorAll('#ring .name-of text')]
                .map((text) => ({ name: text.textContent, box: text.getBoundingClientRect() }));
            const { left, right } = document.querySelector('#ring svg').getBoundingClientRect();
            const cut = boxes.filter(({ box }) => box.left < left - 1 || box.right > right + 1);
            const over = boxes.flatMap((one, index) => boxes.slice(index + 1).filter(({ box }) =>
                Math.min(box.right, one.box.right) - Math.max(box.left, one.box.left) > 1
                && Math.min(box.bottom, one.box.bottom) - Math.max(box.top, one.box.top) > 5)
                .map((other) => `${one.name} / ${other.name}`));
            return [...cut.map(({ name }) => name), ...over]";
        assert_eq!(self.run(overlaps).await, json!([]), "labels can be read");
    }
}

/// A command of the browser's own protocol.
#[derive(Debug)]
struct DevTools(&'static str, Value);

impl WebDriverCompatibleCommand for DevTools {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, <Url as FromStr>::Err> {
        base.join(&format!("session/{}/goog/cdp/execute", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(json!({"cmd": self.0, "params": self.1}).to_string()))
    }
}
