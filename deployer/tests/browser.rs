//! The dashboard in a real browser, over a real ring of processes made by the real program.
//!
//! Needs Chromium and its driver. Without them the test says so and ends; where `CI` is `true` it fails.
//! `UPDATE_PICTURE=1` makes the picture in README anew.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "this is test code")]

use std::io::{BufRead, BufReader, Write};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fantoccini::elements::Element;
use fantoccini::{Client, ClientBuilder, Locator};
use futures_util::FutureExt;
use hyper_util::client::legacy::connect::HttpConnector;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// How long the ring may take to be right, on a busy machine.
const RIGHT_WITHIN: Duration = Duration::from_secs(90);
/// How long anything else on the page may take.
const SOON: Duration = Duration::from_secs(20);

/// A program of this test, ended with it.
struct Running(Child);

impl Running {
    /// Starts a program and reads its output until `found` finds something in a line.
    fn start<T: Send + 'static>(
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

/// A ring in a folder of its own, destroyed with the test.
struct Ring {
    folder: tempfile::TempDir,
}

impl Ring {
    fn new(nodes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_ports(nodes);
        let inventory =
            format!("ring: {{name: browser}}\nnodes: {nodes}\nagent: {{port: {port}}}\n");
        std::fs::write(folder.path().join("inventory.yaml"), inventory).unwrap();
        Self { folder }
    }

    /// The program, where no Docker engine can be reached.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sky-deploy"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("XDG_STATE_HOME", self.folder.path().join("state"))
            .env("DOCKER_HOST", "unix:///nonexistent");
        command
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let destroyed = self.command(&["destroy", "--yes"]).stdout(Stdio::null()).status();
        if !std::thread::panicking() {
            assert!(destroyed.unwrap().success(), "the ring is destroyed");
        }
    }
}

/// The first of `count` consecutive ports that nobody uses now, outside the range that systems hand out.
fn free_ports(count: usize) -> u16 {
    let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let first = 16_000 + u16::try_from(std::process::id() % 300).unwrap() * 10;
    (first..first + 900)
        .step_by(10)
        .find(|first| (*first..first + u16::try_from(count).unwrap()).all(is_free))
        .expect("some ports are free")
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The browser and its driver; says what is skipped without them.
fn browser() -> Option<(PathBuf, PathBuf)> {
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

/// The page, as a user sees it.
struct Page(Client);

impl Page {
    async fn wait(&self, css: &str, at_most: Duration) -> Element {
        let found = self.0.wait().at_most(at_most).for_element(Locator::Css(css)).await;
        match found {
            Ok(element) => element,
            Err(error) => panic!("{css} did not appear: {error}\n{}", self.text("main").await),
        }
    }

    async fn verdict(&self, verdict: &str, at_most: Duration) -> String {
        self.wait(&format!("#verdict[data-verdict={verdict}]"), at_most).await.text().await.unwrap()
    }

    async fn text(&self, css: &str) -> String {
        self.0.find(Locator::Css(css)).await.unwrap().text().await.unwrap()
    }

    /// Waits until a part of the page says something.
    async fn says(&self, css: &str, words: &str) {
        let saying = async {
            while !self.text(css).await.contains(words) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        if tokio::time::timeout(SOON, saying).await.is_err() {
            panic!("{css} does not say `{words}`: {}", self.text(css).await);
        }
    }

    async fn count(&self, css: &str) -> usize {
        self.0.find_all(Locator::Css(css)).await.unwrap().len()
    }

    async fn click(&self, css: &str) {
        self.wait(css, SOON).await.click().await.unwrap();
    }

    async fn fill(&self, css: &str, text: &str) {
        let field = self.wait(css, SOON).await;
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Writes what README shows.
    async fn picture(&self, file: &str) {
        self.0.set_window_size(1400, 1560).await.unwrap();
        self.run("scrollTo(0, 0)").await;
        let picture = self.0.screenshot().await.unwrap();
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(file), picture).unwrap();
        self.0.set_window_size(1400, 1000).await.unwrap();
    }

    async fn run(&self, script: &str) -> Value {
        self.0.execute(script, Vec::new()).await.unwrap()
    }

    /// Shows a node in its panel. Selecting what is selected would let go of it.
    async fn select(&self, name: &str) {
        let row = format!("[data-row][data-name=\"{name}\"]");
        if self.wait(&row, SOON).await.attr("aria-pressed").await.unwrap().as_deref()
            != Some("true")
        {
            self.click(&row).await;
        }
        self.wait(&format!("{row}[aria-pressed=true]"), SOON).await;
    }

    /// Does something to the selected node, by way of the question.
    async fn act(&self, verb: &str) {
        self.click(&format!("#node [data-action={verb}]")).await;
        self.wait("#confirm[open]", SOON).await;
        self.click("#confirm-yes").await;
    }

    async fn state_becomes(&self, name: &str, mark: &str) {
        self.wait(&format!("[data-row][data-name=\"{name}\"] .look-{mark}"), SOON).await;
    }
}

#[tokio::test]
async fn a_ring_is_seen_to_break_and_to_heal() {
    let Some((chromium, chromedriver)) = browser() else { return };
    let ring = Ring::new(5);
    let mut apply = ring.command(&["apply", "--dashboard", "127.0.0.1:0"]);
    let (dashboard, url) = Running::start(&mut apply, |line| {
        line.split_whitespace().find(|word| word.contains("/#token=")).map(str::to_owned)
    });
    let (driver, port) = Running::start(Command::new(chromedriver).arg("--port=0"), |line| {
        line.strip_suffix('.')?.rsplit_once("successfully on port ")?.1.parse().ok()
    });
    let page = Page(connect(&chromium, port).await);
    // Also after a failure the browser must be closed: it does not end with its driver.
    let outcome = AssertUnwindSafe(story(&page, &url, dashboard)).catch_unwind().await;
    page.0.close().await.unwrap();
    drop(driver);
    if let Err(failure) = outcome {
        std::panic::resume_unwind(failure);
    }
}

/// What a user does, and sees.
async fn story(page: &Page, url: &str, dashboard: Running) {
    page.0.goto(url).await.unwrap();

    // Five nodes, and it is right.
    let verdict = page.verdict("right", RIGHT_WITHIN).await;
    assert!(verdict.contains("The ring is right"), "{verdict}");
    assert_eq!(page.count("[data-row]").await, 5);
    assert_eq!(page.count("#ring g.node").await, 5);
    assert_eq!(page.count("#ring .arc").await, 5);
    assert_eq!(page.0.current_url().await.unwrap().fragment(), None, "the token is not shown");
    let foreign = "return performance.getEntriesByType('resource').map((entry) => entry.name)
        .filter((name) => !name.startsWith(location.origin))";
    assert_eq!(page.run(foreign).await, json!([]), "the page works offline");

    // A key goes in and comes out.
    page.fill("#key", "page/1 é").await;
    page.fill("#value", "from the page").await;
    page.click("#key-form [value=create]").await;
    page.wait("#key-result [data-done=create].good", SOON).await;
    page.fill("#value", "").await;
    page.click("#key-form [value=get]").await;
    page.wait("#key-result [data-done=get].good", SOON).await;
    assert_eq!(page.text("#key-result .value").await, "from the page");
    page.wait("#ring .halo.owner", SOON).await;
    page.click("#key-form [value=create]").await;
    page.wait("#key-result [data-done=create].bad", SOON).await;

    // A killed node: wrong, and why.
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let address = url.split_once("/#").unwrap().0;
    let state = client.get(format!("{address}/api/ring")).send().await.unwrap();
    let state: Value = state.json().await.unwrap();
    let victim = &state["nodes"][2];
    let name = victim["name"].as_str().unwrap();
    let pid = Pid::from_raw(i32::try_from(victim["pid"].as_u64().unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let verdict = page.verdict("wrong", SOON).await;
    assert!(verdict.contains("The ring is not right"), "{verdict}");
    assert!(verdict.contains(&format!("{name} ")), "{verdict}");
    page.state_becomes(name, "down").await;

    // Started again from the page: right.
    page.select(name).await;
    page.act("start").await;
    page.verdict("right", RIGHT_WITHIN).await;
    page.state_becomes(name, "up").await;
    page.click("#key-form [value=get]").await;
    page.wait("#key-result [data-done=get].good", SOON).await;
    assert_eq!(page.text("#key-result .value").await, "from the page");

    // Back to when it was down, and to now.
    let entry = format!("//button[@data-moment][contains(., '{name} is down')]");
    page.0.find(Locator::XPath(&entry)).await.unwrap().click().await.unwrap();
    page.wait("#past:not([hidden])", SOON).await;
    page.state_becomes(name, "down").await;
    page.verdict("wrong", SOON).await;
    assert_eq!(page.count("#node [data-action]").await, 0, "the past cannot be changed");
    page.click("#past [data-now]").await;
    page.wait("#past[hidden]", SOON).await;
    page.state_becomes(name, "up").await;

    // What keeps the circle, and what would be without this node.
    page.says("#coverage", "3 of 3 members answer").await;
    page.says("#coverage", "Any one node can fail now").await;
    page.click("#node [data-whatif]").await;
    page.wait(&format!("#ring [aria-label^=\"{name}, down\"]"), SOON).await;
    let all_lack = format!(
        "const its = [...document.querySelectorAll('#ring .range')]
            .filter((range) => range.querySelector('title').textContent.includes('{name}'));
        return its.length >= 3 && its.every((range) => range.querySelector('.lack'))"
    );
    assert_eq!(page.run(&all_lack).await, json!(true), "its ranges would lack a copy");
    page.says("#node .whatif", "Every key can still be read").await;
    page.click("#node [data-whatif]").await;
    page.wait(&format!("#ring [aria-label^=\"{name}, up\"]"), SOON).await;
    if std::env::var_os("UPDATE_PICTURE").is_some() {
        page.picture("dashboard.png").await;
    }

    // Frozen and let go.
    page.act("pause").await;
    page.state_becomes(name, "paused").await;
    page.verdict("wrong", SOON).await;
    page.act("unpause").await;
    page.verdict("right", RIGHT_WITHIN).await;

    // The story is told, and fits a telephone.
    let story = page.text("#changes").await;
    for event in [format!("{name} is down"), format!("{name} is paused"), format!("{name} is up")] {
        assert!(story.contains(&event), "{event}: {story}");
    }
    page.0.set_window_size(500, 900).await.unwrap();
    let overflow = "return document.documentElement.scrollWidth > innerWidth";
    assert_eq!(page.run(overflow).await, json!(false), "nothing sticks out");

    // A page that is opened later knows the past, too.
    page.0.refresh().await.unwrap();
    page.verdict("right", SOON).await;
    page.says("#changes", &format!("{name} is paused")).await;

    // Without the dashboard the page says so, and keeps what it knows.
    drop(dashboard);
    page.wait("#banner:not([hidden])", SOON).await;
    assert_eq!(page.count("[data-row]").await, 5);
}
