// SPDX-License-Identifier: Apache-2.0
//
// node --test: what template.js promises.

import assert from "node:assert/strict";
import { test } from "node:test";

import { compile, render, TemplateError } from "./src/template.js";
import { TEMPLATES } from "./src/templates.js";

const RENDERED = [
  ["a value is escaped", "<p title='{{a}}'>{{ a }}</p>", { a: `<"'&\`>` },
    "<p title='&lt;&quot;&#39;&amp;&#96;&gt;'>&lt;&quot;&#39;&amp;&#96;&gt;</p>"],
  ["three braces leave it as it is", "{{{a}}}", { a: "<b>" }, "<b>"],
  ["paths go into objects and lists", "{{a.b.0}}", { a: { b: ["x"] } }, "x"],
  ["what is not there is nothing", "[{{a}}{{a.b}}{{b.c}}]", { b: null }, "[]"],
  ["0 and false are texts", "{{a}}{{b}}", { a: 0, b: false }, "0false"],
  ["objects are JSON, escaped", "{{a}}", { a: { b: 1 } }, "{&quot;b&quot;:1}"],
  ["own properties only", "[{{constructor}}{{a.__proto__}}{{a.length}}{{toString.name}}]", { a: "x" }, "[]"],
  ["if", "{{#if a}}yes{{else}}no{{/if}}", { a: "x" }, "yes"],
  ["if: an empty list is not", "{{#if a}}yes{{else}}no{{/if}}", { a: [] }, "no"],
  ["if: an object is, also without properties", "{{#if a}}yes{{/if}}", { a: {} }, "yes"],
  ["unless", "{{#unless a}}no{{/unless}}", { a: 0 }, "no"],
  ["each", "{{#each a}}{{@index}}{{this}}{{#if @last}}.{{else}},{{/if}}{{/each}}", { a: ["x", "y"] }, "0x,1y."],
  ["each: nothing", "{{#each a}}x{{else}}none{{/each}}", { a: [] }, "none"],
  ["each over an object", "{{#each a}}{{@key}}={{this}};{{/each}}", { a: { x: 1, y: 2 } }, "x=1;y=2;"],
  ["each: the outside", "{{#each a}}{{b}}{{../c}}{{/each}}", { a: [{ b: 1 }, { b: 2 }], c: "-" }, "1-2-"],
  ["each in each", "{{#each a}}{{#each this}}{{@index}}{{../@index}}{{this}} {{/each}}{{/each}}", { a: [["x"], ["y"]] },
    "00x 01y "],
  ["too far outside is nothing", "[{{../../a}}]", { a: 1 }, "[]"],
  ["comments are nothing", "a{{! <b> {x} }}b", {}, "ab"],
  ["lone braces stay", "a { b } }} {", {}, "a { b } }} {"],
  ["this may be anything", "{{this}}", "<", "&lt;"],
  ["no data", "[{{a}}]", null, "[]"],
];

for (const [name, source, data, wanted] of RENDERED) {
  test(name, () => assert.equal(render(source, data), wanted));
}

const REFUSED = [
  ["{{#if a}}", /line 1: \{\{#if\}\} has no end/],
  ["\n{{/if}}", /line 2: .* ends no block/],
  ["{{#if a}}{{/each}}", /\{\{\/if\}\} is needed/],
  ["{{else}}", /is in no block/],
  ["{{#if a}}{{else}}{{else}}{{/if}}", /there are two/],
  ["{{#for a}}{{/for}}", /there is no block/],
  ["{{#if a b}}{{/if}}", /takes one name/],
  ["{{#if}}{{/if}}", /is not the name/],
  ["{{a b}}", /is not the name/],
  ["{{}}", /is not the name/],
  ["{{a..b}}", /is not the name/],
  ["{{@root}}", /is not the name/],
  ["{{#if a}}".repeat(65), /nested more than 64/],
];

for (const [source, message] of REFUSED) {
  test(`refused: ${source.slice(0, 40)}`, () => {
    assert.throws(() => compile(source), (error) => error instanceof TemplateError && message.test(error.message));
  });
}

test("nothing that is put in can make markup", () => {
  const hostile = String.fromCodePoint(...Array.from({ length: 0x2100 }, (_, code) => code));
  const made = render("{{a}}", { a: hostile });
  assert.doesNotMatch(made, /[<>"'`]|&(?!amp;|lt;|gt;|quot;|#39;|#96;)/);
});

test("a template renders twice, and in pieces", () => {
  const template = compile("{{#each a}}{{this}}{{/each}}");
  assert.deepEqual([...template.render({ a: [1, 2] })], ["1", "2"]);
  assert.deepEqual([...template.render({ a: [] })], []);
});

test("the templates that are built in compile", () => {
  for (const source of Object.values(TEMPLATES)) compile(source);
});
