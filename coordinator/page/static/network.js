// Keeps the network's page as it is at this moment: one stream of states from the coordinator fills everything in.
"use strict";

const $ = id => document.getElementById(id);
const OWN = "own";
const POLL_MS = 2000;
const BADGES = {
  training: "busy", uploading: "busy", invited: "busy", measuring: "busy",
  answered: "good", late: "warn", paused: "warn", rejected: "bad", declined: "bad",
};
const WORDS = {
  measuring: "measuring the model",
  declined: "can’t answer",
};

let state = null;          // the newest state of the coordinator
let clockOffset = 0;       // the server's clock minus this one's, in seconds
let chosenRun = null;      // a run that the person chose to look at; null follows the newest
let shownStamp = "";       // what of the run is drawn already
let runs = [];
let said = "";

// --- small things -----------------------------------------------------------------------------------------

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function make(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function say(text) {
  if (text && text !== said) {
    said = text;
    $("live").textContent = text;
  }
}

function plural(number, word) {
  return `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
}

function bytes(number) {
  if (!number) return "";
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(number) / 3));
  return `${(number / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

function ago(seen) {
  if (seen === null) return "";
  const seconds = Math.max(0, Math.round(Date.now() / 1000 + clockOffset - seen));
  if (seconds < 5) return "now";
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  return seconds < 86400 ? `${Math.floor(seconds / 3600)} h ago` : `${Math.floor(seconds / 86400)} d ago`;
}

function fixed(value, digits) {
  return Number.isFinite(value) ? value.toFixed(digits) : "";
}

// --- the connections --------------------------------------------------------------------------------------

function showConnections(isAnswering) {
  const coordinator = $("coordinator-state"), broker = $("broker-state");
  const isConnected = isAnswering && state && state.broker.is_connected;
  const isReady = isConnected && state.is_ready;
  coordinator.className = `fact ${isReady ? "good" : isAnswering ? "waiting" : "bad"}`;
  const word = isReady ? "ready" : isConnected || !state ? "starting …" : "waiting for the broker";
  setText(coordinator, `Coordinator: ${isAnswering ? word : "no answer"}`);
  $("offline").hidden = isAnswering;
  broker.className = `fact ${isConnected ? "good" : isAnswering && state ? "bad" : "waiting"}`;
  setText(broker, isConnected ? "Broker: connected" : isAnswering && state ? "Broker: away" : "Broker: unknown");
  broker.title = state ? state.broker.address || "" : "";
  $("broker-away").hidden = !(isAnswering && state) || isConnected;
  $("dead").hidden = !(state && state.num_dead);
  if (state && state.num_dead) setText($("dead"), `${plural(state.num_dead, "message")} could not be accepted since the start: see the queue “dead” on RabbitMQ’s own page.`);
  if (!isAnswering) $("launch-button").disabled = true;
  if (state && state.broker.management) $("management").href = `${state.broker.management}/#/queues`;
}

// --- the workers ------------------------------------------------------------------------------------------

function examplesText(worker) {
  if (worker.evaluate_only) return `measures on ${plural(worker.num_test_examples, "example")}`;
  const classes = Object.entries(worker.examples_per_class);
  if (!classes.length) return plural(worker.num_examples, "example");
  if (classes.length > 4) return `${plural(worker.num_examples, "example")} in ${classes.length} classes`;
  return classes.map(([name, number]) => `${name}: ${number.toLocaleString("en")}`).join(" · ");
}

function stateDetail(worker) {
  if (worker.progress) {
    const { epoch, epochs, batch, batches } = worker.progress;
    return `${epochs > 1 ? `epoch ${epoch}/${epochs}, ` : ""}batch ${batch}/${batches}`;
  }
  return worker.detail || "";
}

function newRow(worker) {
  const row = make("tr");
  row.dataset.name = worker.name;
  const name = make("th", "", worker.name);
  name.scope = "row";
  const cell = make("td", "state-cell");
  const bar = make("progress");
  bar.max = 1;
  bar.setAttribute("aria-label", `Training of ${worker.name}`);
  cell.append(make("span", "badge"), bar, make("p"));
  row.append(name, cell, make("td", "examples"), make("td", "task-cell"), make("td", "version"), make("td", "seen"));
  return row;
}

function fillRow(row, worker) {
  const [, cell, examples, task, version, seen] = row.children;
  const [badge, bar, detail] = cell.children;
  row.className = worker.is_present ? "" : "away";
  badge.className = `badge ${BADGES[worker.state] || ""}`;
  setText(badge, WORDS[worker.state] || worker.state);
  bar.hidden = !worker.progress;
  if (worker.progress) bar.value = worker.progress.share;
  setText(detail, stateDetail(worker));
  detail.hidden = !detail.textContent;
  setText(examples, examplesText(worker));
  examples.title = Object.entries(worker.examples_per_class).map(([name, n]) => `${name}: ${n}`).join("\n");
  setText(task, worker.task || "any");
  row.dataset.seen = worker.last_seen ?? "";
  setText(seen, ago(worker.last_seen));
  setText(version, worker.release);
  version.title = worker.release === state.release ? "" : `The coordinator runs ${state.release}`;
}

function showWorkers() {
  const body = $("workers");
  const known = new Map([...body.children].map(row => [row.dataset.name, row]));
  const ordered = [...state.workers].sort((a, b) => b.is_present - a.is_present);
  ordered.forEach((worker, index) => {
    const row = known.get(worker.name) || newRow(worker);
    known.delete(worker.name);
    fillRow(row, worker);
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] || null);
  });
  known.forEach(row => row.remove());
  const present = state.workers.filter(worker => worker.is_present).length;
  $("no-workers").hidden = state.workers.length > 0;
  $("workers-frame").hidden = state.workers.length === 0;
  setText($("workers-count"), state.workers.length ? `${present} present` : "");
  setText($("workers-summary"), summaryText());
  say(state.workers.length ? `${plural(present, "worker")} present` : "");
}

function summaryText() {
  const counts = new Map();
  for (const worker of state.workers) {
    const word = WORDS[worker.state] || worker.state;
    counts.set(word, (counts.get(word) || 0) + 1);
  }
  return counts.size > 1 || !counts.has("idle") ? [...counts].map(([word, n]) => `${n} ${word}`).join(" · ") : "";
}

function tickSeen() {
  for (const row of $("workers").children) {
    if (row.dataset.seen) setText(row.lastElementChild, ago(Number(row.dataset.seen)));
  }
}

// --- launching --------------------------------------------------------------------------------------------

function chosenTask() {
  const name = $("task").value;
  if (name !== OWN) return state.tasks.find(task => task.name === name);
  const own = state.tasks.find(task => task.name === $("own").value.trim());
  return own || { name: $("own").value.trim(), num_able: numFree(), epochs: 1, batch_size: 32, learning_rate: null, last_model: null };
}

function numFree() {
  return state.workers.filter(worker => worker.is_present && worker.state !== "paused" && !worker.evaluate_only && !worker.task).length;
}

function showTasks() {
  const select = $("task");
  const wanted = [...state.tasks.map(task => [task.name, `${task.name} (${plural(task.num_able, "worker")})`]), [OWN, "own model …"]];
  if ([...select.options].map(option => option.value).join() !== wanted.map(([value]) => value).join()) {
    const former = select.value;
    select.replaceChildren(...wanted.map(([value, text]) => new Option(text, value)));
    select.value = former;
  }
  if (!select.dataset.touched) select.value = likelyTask(wanted);
  wanted.forEach(([, text], index) => {
    if (select.options[index].text !== text) select.options[index].text = text;
  });
}

// Until a person chooses: the task of the newest run, or the first one that the present workers can do.
function likelyTask(wanted) {
  const able = state.tasks.filter(task => task.num_able > 0).map(task => task.name);
  const last = runs.map(run => run.task).find(task => able.includes(task));
  return last || able[0] || wanted[0][0];
}

function showLaunch() {
  const isBusy = state.run !== null;
  $("launch").hidden = isBusy;
  $("stop-box").hidden = !isBusy;
  if (isBusy) {
    $("launch-button").disabled = true;  // Enter in the token's field would press it
    const isStopping = state.run.is_stopping;
    setText($("stop-text"), isStopping ? "The run ends after the round under way." : `${state.run.id} is under way. Its last model is kept when you stop it.`);
    $("stop").hidden = isStopping;
    $("stop-now").hidden = !isStopping;
    setText($("launch-reason"), "");
    return;
  }
  showTasks();
  const task = chosenTask();
  $("own-field").hidden = $("task").value !== OWN;
  $("quorum").placeholder = task.num_able ? `all ${task.num_able}` : "all";
  $("epochs").placeholder = task.epochs ?? "";
  $("batch-size").placeholder = task.batch_size ?? "";
  $("learning-rate").placeholder = task.learning_rate ?? "the model’s";
  $("go-on").disabled = !task.last_model;
  if (!task.last_model) $("from-scratch").checked = true;
  else if (!$("launch").dataset.touched) $("go-on").checked = true;
  setText($("go-on-text"), task.last_model ? `with the last model (${task.last_model})` : "with the last model (there is none)");
  const reason = whyNot(task);
  $("launch-button").disabled = reason !== "";
  setText($("launch-reason"), reason);
}

function whyNot(task) {
  if (!state.broker.is_connected) return "The broker is away.";
  if (!state.is_ready) return "The coordinator is starting.";
  if (!task.name) return "Say which model.";
  const quorum = Number($("quorum").value) || 1;
  if (task.num_able === 0) return `No present worker can train ${task.name}.`;
  if (quorum > task.num_able) return `A quorum of ${quorum} can’t be met: ${plural(task.num_able, "worker")} can train ${task.name}.`;
  return "";
}

async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  const token = $("token");
  if (token) headers["X-Warren-Token"] = token.value;
  try {
    const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
    const answer = await response.json();
    showError(response.ok ? "" : answer.error);
    return response.ok ? answer : null;
  } catch {
    showError("The coordinator does not answer.");
    return null;
  }
}

function showError(text) {
  $("launch-error").hidden = !text;
  setText($("launch-error"), text);
}

function onInput(event) {
  if (event.target.name === "begin") $("launch").dataset.touched = "yes";
  if (event.target.id === "task") {
    $("task").dataset.touched = "yes";
    delete $("launch").dataset.touched;
  }
  if (state && state.workers) showLaunch();
}

async function launch(event) {
  event.preventDefault();
  const options = { rounds: $("rounds-wanted").value, "from-scratch": $("from-scratch").checked, strategy: $("strategy").value };
  const optional = { quorum: "quorum", epochs: "epochs", "batch-size": "batch-size", "learning-rate": "learning-rate", "deadline-seconds": "deadline",
    "learning-rate-decay": "decay", "keep-every": "keep-every", "stop-when": "stop-when", patience: "patience" };
  for (const [name, id] of Object.entries(optional)) if ($(id).value) options[name] = $(id).value;
  const trackers = [...document.querySelectorAll("[name=track]:checked")].map(box => box.value);
  if (trackers.length) options.track = trackers.join(",");
  $("launch-button").disabled = true;
  const answer = await ask("api/launch", { task: chosenTask().name, options });
  if (answer) {
    chosenRun = null;
    delete $("launch").dataset.touched;
    say(`Launched ${answer.run}`);
  } else {
    showLaunch();
  }
}

// --- the run ----------------------------------------------------------------------------------------------

function runToShow() {
  if (chosenRun) return chosenRun;
  if (state.run) return state.run.id;
  return runs.length ? runs[0].id : null;
}

function runLine(run) {
  const opened = run.open_round;
  if (run.phase === "building") return "Building the model …";
  if (!opened) return `Waiting for workers: ${run.workers_present} of ${Math.max(run.workers_wanted, run.quorum)} are there.`;
  if (run.phase === "measuring") return `Measuring the model of round ${run.closed_rounds} at the workers …`;
  const attempt = opened.attempt > 1 ? `, attempt ${opened.attempt}` : "";
  const rejected = opened.rejected ? `, ${opened.rejected} rejected` : "";
  return `Round ${run.round} of ${run.rounds}${attempt}: ${opened.accepted} of ${opened.invited} answered${rejected}; quorum ${opened.quorum}.`;
}

function share(run) {
  const opened = run.open_round;
  if (!opened || !opened.invited) return 0;
  const underway = state.workers.reduce((sum, worker) => sum + (worker.progress ? worker.progress.share : worker.state === "uploading" ? 1 : 0), 0);
  return Math.min(1, (opened.accepted + 0.95 * underway) / opened.invited);
}

function showLive(run) {
  $("run-progress").hidden = false;
  $("rounds-bar").value = run.closed_rounds / run.rounds;
  setText($("rounds-text"), `${run.closed_rounds} of ${run.rounds} rounds closed`);
  $("answers-bar").value = share(run);
  setText($("answers-text"), run.phase === "measuring" ? "measuring" : run.open_round ? `round ${run.round} under way` : "no round is open");
  setText($("run-text"), runLine(run));
  say(runLine(run));
}

function showRun() {
  const id = runToShow();
  $("no-run").hidden = id !== null;
  $("run").hidden = id === null;
  $("run-links").hidden = id === null;
  if (id === null) return;
  const live = state.run && state.run.id === id ? state.run : null;
  const summary = runs.find(run => run.id === id);
  if (live) showLive(live);
  else {
    $("run-progress").hidden = true;
    setText($("run-text"), summary ? `${plural(summary.closed_rounds, "round")} of ${summary.rounds}, begun ${new Date(summary.started_at).toLocaleString()}.` : "");
  }
  setText($("run-task"), live ? live.task : summary ? summary.task : "");
  setText($("run-id"), id);
  const badge = $("run-state");
  const outcome = live ? (live.is_stopping ? "stopping" : live.phase) : summary && summary.outcome || "";
  badge.className = `badge ${outcomeBadge(outcome)}`;
  badge.hidden = !outcome;
  setText(badge, outcome);
  showBest(live, summary);
  showPrivate(live && live.private);
  $("run-reason").hidden = !(summary && !live && summary.reason);
  $("run-reason").className = `notice ${outcome === "failed" ? "error" : "warn"}`;
  setText($("run-reason"), summary && summary.reason || "");
  $("get-model").hidden = !(summary && summary.has_model);
  const file = (summary && summary.model_file) || "model.keras";
  $("get-model").href = `runs/${id}/${file}`;
  setText($("get-model"), `Download ${file}`);
  $("get-history").href = `runs/${id}/history.csv`;
  $("get-best").hidden = !(summary && summary.best_round);
  $("get-best").href = `runs/${id}/${file.replace("model", "best")}`;
  setText($("get-best"), file.replace("model", "best"));
  $("get-workers").hidden = !(summary && summary.has_workers_picture);
  $("get-workers").href = `runs/${id}/workers.png`;
  $("get-curves").hidden = !(summary && summary.has_curves);
  $("get-curves").href = `runs/${id}/curves.png`;
  const stamp = `${id} ${live ? live.history_stamp : `${summary ? summary.outcome : ""} ${summary ? summary.closed_rounds : ""}`}`;
  if (stamp !== shownStamp) {
    shownStamp = stamp;
    fetchHistory(id);
  }
}

function showBest(live, summary) {
  const best = live && live.best;
  const until = live && live.stop_when ? ` It ends after ${plural(live.patience, "round")} without a better ${live.stop_when}.` : "";
  const text = best ? `Best so far: round ${best.round}, ${best.measure} ${best.value.toFixed(4)}.${until}`
    : !live && summary && summary.best_round ? `The best model is that of round ${summary.best_round}.` : until.trim();
  $("run-best").hidden = !text;
  setText($("run-best"), text);
}

function showPrivate(kept) {
  $("run-private").hidden = !kept;
  setText($("run-private"), kept ? `Private: ${kept.patterns.join(", ")} (${plural(kept.num_weights, "weight")}), its own at each of ${plural(kept.num_sites, "site")}.` : "");
}

function outcomeBadge(outcome) {
  return { done: "good", failed: "bad", stopped: "warn", stopping: "warn" }[outcome] || "busy";
}

async function fetchHistory(id) {
  try {
    const response = await fetch(`api/runs/${encodeURIComponent(id)}`);
    if (!response.ok) throw new Error(response.statusText);
    showHistory(await response.json());
  } catch {
    shownStamp = "";  // asked again with the next state
  }
}

function names(value) {
  return Array.isArray(value) ? value : value ? String(value).split(" ") : [];
}

function reasons(value) {
  if (!value) return "";
  return typeof value === "string" ? value : Object.entries(value).map(([worker, why]) => `${worker}: ${why}`).join("; ");
}

function testColumns(run) {
  return run.measure_names.filter(name => run.history.some(row => Number.isFinite(row[`val_${name}`])));
}

function centralColumns(run) {
  return run.measure_names.filter(name => run.history.some(row => Number.isFinite(row[`central_${name}`])));
}

function roundHead(run) {
  const line = make("tr");
  const words = ["Round", ...testColumns(run).map(name => `Test ${title(name)}`), ...centralColumns(run).map(name => `Central ${title(name)}`),
    "Training loss", "Seconds", "Uploaded", "Took part"];
  line.append(...words.map((text, index) => {
    const cell = make("th", index && index < words.length - 1 ? "n" : "", text);
    cell.scope = "col";
    return cell;
  }));
  return line;
}

function title(measure) {
  const known = charts.title(measure);
  return known === "AUC" ? known : known.toLowerCase();
}

function roundRow(row, run) {
  const line = make("tr");
  const head = make("th", "", row.round === 0 ? "start" : String(row.round));
  head.scope = "row";
  if (row.closed_at) head.title = `closed ${new Date(row.closed_at).toLocaleString()}`;
  line.append(head);
  const tests = testColumns(run).map(name => fixed(row[`val_${name}`], name === "loss" ? 4 : 3));
  const central = centralColumns(run).map(name => fixed(row[`central_${name}`], name === "loss" ? 4 : 3));
  const cells = [...tests, ...central, fixed(row.loss, 4), fixed(row.seconds, 1), bytes(row.update_bytes)];
  line.append(...cells.map(text => make("td", "n", text)), tookPart(row));
  return line;
}

function tookPart(row) {
  const cell = make("td", "took");
  const accepted = names(row.accepted), late = names(row.late), rejected = reasons(row.rejected);
  if (accepted.length > 4) cell.append(`${accepted.length} workers`);
  else accepted.sort().forEach((name, index) => cell.append(index ? ", " : "", make("span", "name", name)));
  cell.title = accepted.join("\n");
  const shown = late.length > 4 ? `${late.slice(0, 4).join(", ")} and ${late.length - 4} more` : late.join(", ");
  if (late.length) cell.append(make("span", "trouble", `late: ${shown}`));
  if (rejected) cell.append(make("span", "trouble", `rejected: ${rejected}`));
  return cell;
}

function showHistory(run) {
  const rows = run.history.filter(row => row.round > 0 || Number.isFinite(row.val_loss) || Number.isFinite(row.central_loss));
  $("rounds-frame").hidden = rows.length === 0;
  $("rounds-head").replaceChildren(roundHead(run));
  $("rounds").replaceChildren(...rows.slice().reverse().map(row => roundRow(row, run)));
  const kinds = charts.show($("charts"), run.history, run.workers, run.measure_names);
  $("legend").hidden = kinds.size === 0;
  $("legend-workers").hidden = !kinds.has("worker");
  $("legend-central").hidden = !kinds.has("central");
}

// --- earlier runs -----------------------------------------------------------------------------------------

async function fetchRuns() {
  try {
    const response = await fetch("api/runs");
    if (!response.ok) return;
    runs = (await response.json()).runs;
    if (state && state.workers) {
      showRuns();
      showRun();
      showLaunch();
    }
  } catch { /* the stream says when the coordinator is back */ }
}

function runEntry(run) {
  const entry = make("li");
  const head = make("div", "run-head");
  const name = make("button", "run-name", run.id);
  name.type = "button";
  name.setAttribute("aria-current", String(run.id === runToShow()));
  name.addEventListener("click", () => { chosenRun = run.id; showRuns(); showRun(); });
  const isLive = state.run && state.run.id === run.id;
  const outcome = isLive ? "under way" : run.outcome;
  head.append(name);
  if (outcome) head.append(make("span", `badge ${outcomeBadge(outcome)}`, outcome));
  const measures = [["accuracy", run.measures.accuracy], ["AUC", run.measures.auc]]
    .filter(([, value]) => Number.isFinite(value)).map(([word, value]) => `${word} ${value.toFixed(3)}`);
  entry.append(head, make("p", "soft", [`${run.closed_rounds} of ${run.rounds} rounds`, ...measures].join(" · ")));
  return entry;
}

function showRuns() {
  $("no-runs").hidden = runs.length > 0;
  $("runs").replaceChildren(...runs.slice(0, 50).map(runEntry));
}

// --- the stream -------------------------------------------------------------------------------------------

let runsStamp = "";

function take(newest) {
  state = newest;
  if (newest.now) clockOffset = newest.now - Date.now() / 1000;
  showConnections(true);
  if (!state.workers) return;  // the coordinator has not begun
  showWorkers();
  showLaunch();
  showRun();
  const stamp = JSON.stringify([state.run && [state.run.id, state.run.closed_rounds, state.run.history_stamp], state.last_run, state.runs_stamp]);
  if (stamp !== runsStamp) {
    runsStamp = stamp;
    fetchRuns();
  }
}

let poll = 0;

function listen() {
  const stream = new EventSource("events");
  stream.onmessage = event => { stopPolling(); take(JSON.parse(event.data)); };
  stream.onerror = () => {
    showConnections(false);
    startPolling();
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, POLL_MS * 2);
  };
}

function startPolling() {
  if (!poll) poll = setInterval(pollOnce, POLL_MS);
}

function stopPolling() {
  clearInterval(poll);
  poll = 0;
}

async function pollOnce() {
  try {
    const response = await fetch("api/state");
    if (response.status === 401) location.assign("login");  // the coordinator was started anew
    if (response.ok) take(await response.json());
  } catch { showConnections(false); }
}

async function logOut() {
  try {
    await fetch("logout", { method: "POST" });
    location.assign("login");
  } catch { showConnections(false); }
}

$("launch").addEventListener("submit", launch);
for (const kind of ["input", "change"]) $("launch").addEventListener(kind, onInput);
$("stop").addEventListener("click", () => ask("api/stop", { now: false }));
$("stop-now").addEventListener("click", () => ask("api/stop", { now: true }));
if ($("log-out")) $("log-out").addEventListener("click", logOut);
setInterval(tickSeen, 1000);
listen();
