"use strict";
// Comfort for the page of one case; without it the form is sent and answered all the same.

const form = document.getElementById("case");
const result = document.getElementById("result");
const problem = document.getElementById("problem");
const status = document.getElementById("status");
const answer = document.getElementById("answer");
const drops = [...document.querySelectorAll(".drop")];
const thumbs = new Map();
let asked = 0;

function inputOf(drop) {
  return drop.querySelector("input[type=file]");
}

function showChosen(drop) {
  const files = [...inputOf(drop).files];
  const modality = drop.dataset.modality;
  const image = drop.querySelector(".thumb");
  if (thumbs.has(modality)) URL.revokeObjectURL(thumbs.get(modality));
  thumbs.delete(modality);
  image.hidden = true;
  if (files.length === 1 && /^image\/(png|jpeg|gif|webp|bmp)$/.test(files[0].type)) {
    thumbs.set(modality, URL.createObjectURL(files[0]));
    image.src = thumbs.get(modality);
    image.hidden = false;
  }
  drop.classList.toggle("has", files.length > 0);
  drop.querySelector(".remove").hidden = files.length === 0;
  const name = files.length > 1 ? `${files.length} files` : files[0]?.name;
  const chosen = drop.querySelector(".chosen");
  chosen.dataset.empty ??= chosen.textContent;
  chosen.textContent = name ?? chosen.dataset.empty;
  const slice = drop.querySelector(".slice");
  if (slice !== null) {
    const sliced = files.some((file) => !file.type.startsWith("image/"));
    slice.hidden = !sliced;
    if (!sliced) slice.querySelector("input").value = "";
  }
}

function give(drop, files) {
  const transfer = new DataTransfer();
  const several = inputOf(drop).multiple;
  for (const file of several ? files : files.slice(0, 1)) transfer.items.add(file);
  inputOf(drop).files = transfer.files;
  showChosen(drop);
  if (!several && files.length > 1) {
    tell(`${drop.dataset.modality} takes one file; the first of ${files.length} was taken.`);
  }
}

for (const drop of drops) {
  const input = inputOf(drop);
  input.addEventListener("change", () => showChosen(drop));
  drop.querySelector(".remove").addEventListener("click", () => {
    input.value = "";
    showChosen(drop);
    input.focus();
  });
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) give(drop, [...event.dataTransfer.files]);
  });
  showChosen(drop);
}
// A file that misses its place must not take the page's.
for (const kind of ["dragover", "drop"]) {
  window.addEventListener(kind, (event) => event.preventDefault());
}

function tell(text) {
  problem.textContent = text;
  problem.hidden = text === "";
}

async function reasonOf(response) {
  try {
    return (await response.json()).error.reason;
  } catch {
    return `The server says ${response.status}.`;
  }
}

function fragment(text) {
  return new DOMParser().parseFromString(text, "text/html").body;
}

function show(text, keepPlace) {
  const held = document.activeElement?.id;
  result.replaceChildren(...fragment(text).childNodes);
  if (keepPlace && held) document.getElementById(held)?.focus({ preventScroll: true });
  equip();
}

function equip() {
  const slider = document.getElementById("opacity");
  const heats = [...result.querySelectorAll(".heat")];
  const choices = [...result.querySelectorAll("input[name=map-task]")];
  const look = () => {
    const task = choices.find((choice) => choice.checked)?.value;
    for (const heat of heats) {
      heat.hidden = heat.dataset.task !== task;
      heat.style.opacity = slider.value / 100;
    }
    document.getElementById("opacity-value").textContent = `${slider.value} %`;
  };
  if (slider !== null) {
    slider.addEventListener("input", look);
    for (const choice of choices) choice.addEventListener("change", look);
    look();
  }
  for (const [name, action] of [["save", save], ["print", () => window.print()]]) {
    const button = document.getElementById(name);
    if (button !== null) {
      button.hidden = false;
      button.addEventListener("click", action);
    }
  }
}

async function save() {
  const style = await (await fetch("/static/serve.css")).text();
  const kept = result.cloneNode(true);
  kept.removeAttribute("id");
  for (const gone of kept.querySelectorAll(".tools, .looking, .heat[hidden]")) gone.remove();
  const above = [...document.querySelectorAll(".stamp, .top")].map((part) => part.outerHTML);
  // As text: a document made here would be held by this page's own policy.
  const text = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${document.title.replace(/[&<]/g, "")}</title>
<style>${style}</style>
</head>
<body>${above.join("")}<main class="frame kept">${kept.outerHTML}</main></body>
</html>`;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/html" }));
  link.download = "drifa-case.html";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function explain(name, number) {
  const response = await fetch(`/case/${encodeURIComponent(name)}`);
  if (number !== asked) return;
  const waiting = result.querySelector("[data-waiting]");
  if (!response.ok) {
    if (waiting !== null) waiting.textContent = `No map: ${await reasonOf(response)}`;
    return;
  }
  const text = await response.text();
  if (number !== asked) return;
  show(text, true);
  status.textContent += " Where it looked is shown.";
}

async function send(event) {
  event?.preventDefault();
  tell("");
  const body = new FormData(form);
  let size = 0;
  for (const value of body.values()) size += value.size ?? value.length;
  if (size > Number(form.dataset.most)) {
    tell(`These files are larger than the ${Math.floor(form.dataset.most / 2 ** 20)} MiB that the server takes.`);
    return;
  }
  const number = ++asked;
  answer.disabled = true;
  status.textContent = "Asking the network…";
  try {
    const response = await fetch("/case?part=1", { method: "POST", body });
    if (number !== asked) return;
    if (!response.ok) {
      tell(await reasonOf(response));
      status.textContent = "";
      return;
    }
    show(await response.text(), false);
    const article = result.querySelector("article");
    status.textContent = `Answered: ${response.headers.get("x-summary") ?? ""}.`;
    result.focus({ preventScroll: window.matchMedia("(min-width: 60rem)").matches });
    if (article.dataset.case) await explain(article.dataset.case, number);
  } catch {
    tell("The server cannot be reached. Is it still running?");
    status.textContent = "";
  } finally {
    if (number === asked) answer.disabled = false;
  }
}
form.addEventListener("submit", send);

const example = document.getElementById("example");
if (example !== null) {
  let next = 8;
  example.addEventListener("click", async () => {
    const number = ++next % Number(example.dataset.count);
    tell("");
    try {
      for (const drop of drops) {
        const name = drop.dataset.modality;
        const picture = await (await fetch(`/drawn/${number}/${name}.png`)).blob();
        give(drop, [new File([picture], `drawn-${number}.png`, { type: "image/png" })]);
      }
    } catch {
      tell("The server cannot be reached. Is it still running?");
      return;
    }
    await send();
  });
}

// While the network is compiled the page says how far it is.
async function watch() {
  try {
    const health = await (await fetch("/healthz")).json();
    if (health.status === "compiling") {
      status.textContent = `The network is being compiled: ${health.compiled} of ${health.to_compile}.`;
      setTimeout(watch, 1000);
    } else if (status.textContent.startsWith("The network is being")) {
      status.textContent = "Ready.";
    }
  } catch {
    // Said when something is asked.
  }
}
watch();
equip();
