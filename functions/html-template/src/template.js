// SPDX-License-Identifier: Apache-2.0
//
// HTML templates. What is put in is escaped, unless the template says otherwise.
//
//   {{name}}  {{user.name}}  {{this}}      a value, escaped
//   {{{name}}}                             a value as it is: only for HTML that is trusted
//   {{#if path}}…{{else}}…{{/if}}          false, null, 0, "" and empty lists are not
//   {{#unless path}}…{{/unless}}
//   {{#each path}}…{{else}}…{{/each}}      items of a list, or values of an object; {{else}} when there are none
//   {{@index}} {{@key}} {{@first}} {{@last}}   inside each
//   {{../name}}                            what is outside each
//   {{! a comment }}
//
// Escaped is what means anything in HTML text and in quoted attributes. Put values nowhere else: in a script, a style,
// an attribute without quotes, or as the whole of a link, escaping is not enough.

export class TemplateError extends Error {}

const MAX_DEPTH = 64;
const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;", "`": "&#96;" };
const TAG = /\{\{\{([^{}]*)\}\}\}|\{\{!([^]*?)\}\}|\{\{([^{}]*)\}\}/g;
const PATH = /^(?:\.\.\/)*(?:@index|@key|@first|@last|[^\s./#@!"'()=]+(?:\.[^\s./#@!"'()=]+)*)$/;
const BLOCKS = new Set(["if", "unless", "each"]);

export function escapeHtml(text) {
  return text.replace(/[&<>"'`]/g, (found) => ESCAPES[found]);
}

/**
 * A template that renders any number of times: `render(data)` yields the text in pieces.
 *
 * Throws TemplateError, which names the line.
 */
export function compile(source) {
  const root = [];
  const open = [];
  let parts = root;
  let end = 0;
  const fail = (at, message) => {
    throw new TemplateError(`line ${source.slice(0, at).split("\n").length}: ${message}`);
  };
  const path = (text, at) => {
    if (!PATH.test(text)) fail(at, `${JSON.stringify(text)} is not the name of a value`);
    return parsePath(text);
  };
  for (const found of source.matchAll(TAG)) {
    if (found.index > end) parts.push(source.slice(end, found.index));
    end = found.index + found[0].length;
    const [, raw, comment, tag] = found;
    if (comment !== undefined) continue;
    if (raw !== undefined) {
      parts.push({ kind: "value", path: path(raw.trim(), found.index), raw: true });
      continue;
    }
    const text = tag.trim();
    if (text.startsWith("#")) {
      const [kind, of = "", ...more] = text.slice(1).trim().split(/\s+/);
      if (!BLOCKS.has(kind)) fail(found.index, `there is no block {{#${kind}}}; there are if, unless and each`);
      if (more.length > 0) fail(found.index, `{{#${kind}}} takes one name`);
      if (open.length === MAX_DEPTH) fail(found.index, `blocks are nested more than ${MAX_DEPTH} deep`);
      const block = { kind, path: path(of, found.index), parts: [], otherwise: [], at: found.index, turned: false };
      parts.push(block);
      open.push([block, parts]);
      parts = block.parts;
    } else if (text === "else") {
      const block = open.at(-1)?.[0];
      if (block === undefined || block.turned) fail(found.index, "{{else}} is in no block, or there are two");
      block.turned = true;
      parts = block.otherwise;
    } else if (text.startsWith("/")) {
      const [block, outer] = open.pop() ?? fail(found.index, `{{${text}}} ends no block`);
      if (text.slice(1).trim() !== block.kind) fail(found.index, `{{/${block.kind}}} is needed before {{${text}}}`);
      parts = outer;
    } else {
      parts.push({ kind: "value", path: path(text, found.index), raw: false });
    }
  }
  if (open.length > 0) fail(open.at(-1)[0].at, `{{#${open.at(-1)[0].kind}}} has no end`);
  if (end < source.length) parts.push(source.slice(end));
  return { render: (data) => renderParts(root, { value: data, outer: null, loop: {} }) };
}

/** All of `source` with `data` put in; throws TemplateError. */
export function render(source, data) {
  return [...compile(source).render(data)].join("");
}

function parsePath(text) {
  let up = 0;
  while (text.startsWith("../")) {
    up += 1;
    text = text.slice(3);
  }
  if (text.startsWith("@")) return { up, loop: text.slice(1), names: [] };
  const names = text.split(".");
  if (names[0] === "this") names.shift();
  return { up, loop: null, names };
}

function lookUp(path, scope) {
  for (let up = path.up; up > 0 && scope !== null; up -= 1) scope = scope.outer;
  if (scope === null) return undefined;
  if (path.loop !== null) return scope.loop[path.loop];
  let value = scope.value;
  for (const name of path.names) {
    // Own properties only: a template sees the data, and nothing of JavaScript.
    if (value === null || typeof value !== "object" || !Object.hasOwn(value, name)) return undefined;
    value = value[name];
  }
  return value;
}

function isSomething(value) {
  return Array.isArray(value) ? value.length > 0 : Boolean(value);
}

function toText(value) {
  if (value === undefined || value === null) return "";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function* renderParts(parts, scope) {
  for (const part of parts) {
    if (typeof part === "string") {
      yield part;
      continue;
    }
    const value = lookUp(part.path, scope);
    if (part.kind === "value") {
      yield part.raw ? toText(value) : escapeHtml(toText(value));
    } else if (part.kind === "each") {
      const entries = value !== null && typeof value === "object" ? Object.entries(value) : [];
      if (entries.length === 0) yield* renderParts(part.otherwise, scope);
      for (const [index, [key, item]] of entries.entries()) {
        const loop = { index, key, first: index === 0, last: index === entries.length - 1 };
        yield* renderParts(part.parts, { value: item, outer: scope, loop });
      }
    } else {
      yield* renderParts(isSomething(value) === (part.kind === "if") ? part.parts : part.otherwise, scope);
    }
  }
}
