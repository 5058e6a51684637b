// The table of all scenes: filters, sorting, pages, details. Everything else on the page is there without this script.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 50;
  const count = data.tokens.length;
  const runs = data.runs.length;
  const at = (id) => document.getElementById(id);
  const state = { sort: null, down: false, page: 0, open: new Set(), rows: [] };

  // A new element; text is set as text, never as markup.
  const make = (name, text, attributes = {}) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const low = (run, scene, metric) => data.failures.some(
    (kind, bit) => kind.metric === metric && (data.failed[run][scene] >> bit) & 1);
  const shown = (value) => (value === null ? "–" : value.toFixed(3));
  const signed = (value) => (value === null ? "–" : (value > 0 ? "+" : "") + value.toFixed(3));
  const chosenRun = () => Number(at("filter-run").value);
  const chosen = (key) => (at(`filter-${key}`) ? at(`filter-${key}`).value : "");
  const unscored = (run, scene) => data.listed[run][scene] === 1 && data.scores[run][0][scene] === null;
  const failures = (run, scene) => data.failures.filter((_, bit) => (data.failed[run][scene] >> bit) & 1);

  const change = (run, scene) => {
    const [now, before] = [data.scores[run][0][scene], data.scores[0][0][scene]];
    return now === null || before === null ? null : now - before;
  };

  // Columns of the table: key for sorting, head, its title, value, text.
  const columns = () => {
    const run = chosenRun();
    const list = [{ key: "token", head: "scene", value: (scene) => data.tokens[scene] }];
    if (data.logs) list.push({ key: "log", head: "log", value: (scene) => data.logs[scene] || null });
    if (data.commands) list.push({ key: "command", head: "command", value: (scene) => data.commands[scene] || null });
    if (data.stages) list.push({ key: "stage", head: "stage", value: (scene) => data.stages[scene] + 1 });
    if (data.speeds) {
      list.push({ key: "speed", head: "m/s", title: "speed at the time of planning", value: (scene) => data.speeds[scene],
        text: (value) => (value === null ? "–" : value.toFixed(1)) });
    }
    data.runs.forEach((name, index) => {
      const head = runs > 1 ? name : data.benchmark;
      list.push({ key: `score-${index}`, head, title: `${data.benchmark} of ${name}`, text: shown,
        value: (scene) => data.scores[index][0][scene] });
    });
    if (run > 0) {
      list.push({ key: "change", head: "change", title: `${data.runs[run]} minus ${data.runs[0]}`, text: signed,
        value: (scene) => change(run, scene) });
    }
    data.metrics.slice(1).forEach((metric, index) => {
      list.push({ key: `metric-${index + 1}`, head: metric.short, title: `${metric.name} of ${data.runs[run]}`, text: shown,
        value: (scene) => data.scores[run][index + 1][scene] });
    });
    return list;
  };

  // Whether a scene passes the filters as they stand; they are read once for all scenes.
  const filter = () => {
    const run = chosenRun();
    const text = chosen("text").trim().toLowerCase();
    const [command, stage, kind] = ["command", "stage", "failure"].map(chosen);
    const wanted = { better: 1, worse: -1, same: 0 }[chosen("change")];
    const bit = data.failures.findIndex(({ key }) => key === kind);
    const failed = data.failed[run];
    const fails = {
      "": () => true,
      unscored: (scene) => unscored(run, scene),
      some: (scene) => failed[scene] !== 0,
      none: (scene) => failed[scene] === 0 && data.scores[run][0][scene] !== null,
    }[kind] || ((scene) => (failed[scene] >> bit) & 1);
    const has = (scene) => data.tokens[scene].toLowerCase().includes(text)
      || (data.logs !== null && data.logs[scene].toLowerCase().includes(text));
    return (scene) => (!command || data.commands[scene] === command)
      && (!stage || data.stages[scene] === Number(stage))
      && (wanted === undefined || data.changes[run][scene] === wanted)
      && fails(scene) && (!text || has(scene));
  };

  const select = () => {
    const matches = filter();
    state.rows = [];
    for (let scene = 0; scene < count; scene += 1) if (matches(scene)) state.rows.push(scene);
    const column = columns().find(({ key }) => key === state.sort);
    if (!column) return;
    const values = new Array(count);
    state.rows.forEach((scene) => { values[scene] = column.value(scene); });
    const way = state.down ? -1 : 1;
    // What is not known stands last, whichever way; equal scenes keep their order.
    state.rows.sort((first, second) => {
      const one = values[first];
      const two = values[second];
      if (one === null || two === null) return (one === null) - (two === null) || first - second;
      return (one < two ? -way : one > two ? way : 0) || first - second;
    });
  };

  const drawHead = (list) => {
    const cells = list.map(({ key, head, title, text }) => {
      const cell = make("th", undefined, { scope: "col", ...(text ? {} : { class: "text" }) });
      if (state.sort === key) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      const button = make("button", head, { type: "button", "data-sort": key, ...(title ? { title } : {}) });
      button.append(make("span", state.sort === key ? (state.down ? "▼" : "▲") : "", { "aria-hidden": "true" }));
      cell.append(button);
      return cell;
    });
    const focused = document.activeElement && document.activeElement.dataset.sort;
    at("scene-head").replaceChildren(...cells);
    if (focused) at("scene-head").querySelector(`[data-sort="${focused}"]`)?.focus();
  };

  const details = (scene, width) => {
    const row = make("tr", undefined, { class: "details" });
    const cell = make("td", undefined, { colspan: width });
    const table = make("table", undefined, { class: "numbers small" });
    const head = make("tr");
    head.append(make("td"), ...data.metrics.map(({ short, name }) => make("th", short, { scope: "col", title: name })));
    head.append(make("th", "failures", { scope: "col", class: "text" }));
    table.append(head);
    data.runs.forEach((name, run) => {
      const line = make("tr");
      line.append(make("th", name, { scope: "row" }));
      data.scores[run].forEach((values, index) => {
        line.append(make("td", shown(values[scene]), low(run, scene, index) ? { class: "low" } : {}));
      });
      const kinds = failures(run, scene).map(({ label }) => label).join(", ");
      const absent = data.listed[run][scene] ? "" : "not in this run";
      line.append(make("td", unscored(run, scene) ? "not scored" : absent || kinds || "none", { class: "text" }));
      table.append(line);
    });
    cell.append(table);
    // A card of the scene, if there is one, holds its pictures.
    const cards = [...document.querySelectorAll(".card")].filter((card) => card.dataset.token === data.tokens[scene]);
    const seen = new Set();
    cards.forEach((card) => card.querySelectorAll(".picture, .paths").forEach((picture) => {
      const key = picture.innerHTML;
      if (!seen.has(key)) cell.append(picture.cloneNode(true));
      seen.add(key);
    }));
    row.append(cell);
    return row;
  };

  const drawRows = (list) => {
    const rows = [];
    for (const scene of state.rows.slice(state.page * PAGE, (state.page + 1) * PAGE)) {
      const row = make("tr");
      list.forEach(({ key, value, text }) => {
        if (key === "token") {
          const cell = make("th", undefined, { scope: "row" });
          const open = state.open.has(scene);
          cell.append(make("button", data.tokens[scene],
            { type: "button", class: "token", "data-scene": scene, "aria-expanded": open }));
          row.append(cell);
          return;
        }
        const found = value(scene);
        const failed = key.startsWith("metric") && low(chosenRun(), scene, Number(key.slice("metric-".length)));
        const style = text ? (failed ? "low" : "") : "text";
        row.append(make("td", text ? text(found) : (found ?? "–"), style ? { class: style } : {}));
      });
      rows.push(row);
      if (state.open.has(scene)) rows.push(details(scene, list.length));
    }
    if (!rows.length) {
      const row = make("tr");
      row.append(make("td", "No scene matches these filters.", { colspan: list.length, class: "text" }));
      rows.push(row);
    }
    const focused = document.activeElement && document.activeElement.dataset.scene;
    at("scene-rows").replaceChildren(...rows);
    if (focused) at("scene-rows").querySelector(`[data-scene="${focused}"]`)?.focus();
  };

  const draw = () => {
    const pages = Math.max(1, Math.ceil(state.rows.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const list = columns();
    drawHead(list);
    drawRows(list);
    at("scene-count").textContent = `${state.rows.length} of ${count} scenes`;
    at("page-now").textContent = `page ${state.page + 1} of ${pages}`;
    at("page-before").disabled = state.page === 0;
    at("page-after").disabled = state.page >= pages - 1;
  };

  const update = () => {
    if (!columns().some(({ key }) => key === state.sort)) state.sort = null;
    state.page = 0;
    select();
    draw();
  };

  const quoted = (value) => {
    const text = value === null ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };

  const csv = () => {
    const list = columns();
    const rows = [list.map(({ title, head }) => title || head)];
    state.rows.forEach((scene) => rows.push(list.map(({ value }) => value(scene))));
    return rows.map((row) => row.map(quoted).join(",")).join("\n") + "\n";
  };

  const save = () => {
    const address = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    const link = make("a", "", { href: address, download: "scenes.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };

  at("scene-head").addEventListener("click", (event) => {
    const button = event.target.closest("[data-sort]");
    if (!button) return;
    const key = button.dataset.sort;
    // First the lowest scores; again: the highest; a third time: the order of the file.
    if (state.sort !== key) [state.sort, state.down] = [key, false];
    else if (!state.down) state.down = true;
    else state.sort = null;
    update();
  });
  at("scene-rows").addEventListener("click", (event) => {
    const button = event.target.closest("[data-scene]");
    if (!button) return;
    const scene = Number(button.dataset.scene);
    if (!state.open.delete(scene)) state.open.add(scene);
    drawRows(columns());
  });
  const filters = ["text", "run", "failure", "change", "command", "stage"].map((key) => at(`filter-${key}`)).filter(Boolean);
  let waiting = 0;
  filters.forEach((control) => {
    const typed = control.type === "search";
    control.addEventListener(typed ? "input" : "change", () => {
      clearTimeout(waiting);
      waiting = setTimeout(update, typed ? 120 : 0);
    });
  });
  at("filter-reset").addEventListener("click", () => {
    filters.forEach((control) => {
      if (control.tagName === "SELECT") control.selectedIndex = 0;
      else if (control.type === "search") control.value = "";
    });
    state.sort = null;
    update();
  });
  const turn = (pages) => {
    state.page += pages;
    draw();
  };
  at("page-before").addEventListener("click", () => turn(-1));
  at("page-after").addEventListener("click", () => turn(1));
  at("save").addEventListener("click", save);
  // A picture that is pressed is shown as large as the window.
  const large = at("large");
  document.addEventListener("click", (event) => {
    const pressed = event.target.closest(".picture");
    if (pressed) {
      const copy = pressed.querySelector("img").cloneNode();
      large.querySelector("img").replaceWith(copy);
      large.showModal();
    } else if (event.target.closest("#large")) {
      large.close();
    }
  });
  // On paper nothing can be opened.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("main details:not([open])")];
    closed.forEach((part) => { part.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((part) => { part.open = false; }));
  update();
})();
