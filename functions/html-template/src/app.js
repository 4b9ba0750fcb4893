// SPDX-License-Identifier: Apache-2.0
//
// html-template: puts data into an HTML template; template.js says what a template may have.
//
//   POST /html-template          {"template": "<p>{{name}}</p>", "data": {"name": "…"}}
//   POST /html-template/invoice  the data, for the template that is built in
//   GET  /html-template          how it is used

import { compile, TemplateError } from "./template.js";
import { TEMPLATES } from "./templates.js";

const MAX_TEMPLATE_CHARS = 1024 * 1024;
const PIECE_CHARS = 16 * 1024;

// Compiled while the component is built: a request finds them ready.
const BUILT_IN = new Map(Object.entries(TEMPLATES).map(([name, source]) => [name, compile(source)]));

const USAGE = `POST {"template": "<p>{{name}}</p>", "data": {"name": "..."}} here, or data to one of:
${[...BUILT_IN.keys()].map((name) => `/html-template/${name}\n`).join("")}`;

function problem(status, detail, headers = {}) {
  return new Response(JSON.stringify({ status, detail }) + "\n", {
    status,
    headers: { "content-type": "application/problem+json", ...headers },
  });
}

/** The page as a stream: a large one is sent while it is made. */
function page(template, data) {
  const encoder = new TextEncoder();
  const pieces = template.render(data);
  const body = new ReadableStream({
    pull(controller) {
      let text = "";
      while (text.length < PIECE_CHARS) {
        const next = pieces.next();
        if (next.done) {
          if (text !== "") controller.enqueue(encoder.encode(text));
          controller.close();
          return;
        }
        text += next.value;
      }
      controller.enqueue(encoder.encode(text));
    },
  });
  return new Response(body, { headers: { "content-type": "text/html; charset=utf-8" } });
}

async function respond(request) {
  const name = new URL(request.url).pathname.split("/")[2] ?? "";
  if (name !== "" && !BUILT_IN.has(name)) {
    return problem(404, `there is no template ${name}; there are: ${[...BUILT_IN.keys()].join(", ")}`);
  }
  if (request.method === "GET" || request.method === "HEAD") {
    return new Response(request.method === "GET" ? USAGE : null, {
      headers: { "content-type": "text/plain; charset=utf-8" },
    });
  }
  if (request.method !== "POST") return problem(405, "POST data, or GET the usage", { allow: "GET, HEAD, POST" });
  let sent;
  try {
    sent = JSON.parse(await request.text());
  } catch (error) {
    return problem(400, `the body is not JSON: ${error.message}`);
  }
  if (name !== "") return page(BUILT_IN.get(name), sent);
  if (typeof sent?.template !== "string" || sent.template.length > MAX_TEMPLATE_CHARS) {
    return problem(400, `"template" has to be a text of at most ${MAX_TEMPLATE_CHARS} characters`);
  }
  try {
    return page(compile(sent.template), sent.data ?? {});
  } catch (error) {
    if (!(error instanceof TemplateError)) throw error;
    return problem(400, `template, ${error.message}`);
  }
}

addEventListener("fetch", (event) => event.respondWith(respond(event.request)));
