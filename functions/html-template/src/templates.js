// SPDX-License-Identifier: Apache-2.0
//
// The templates that are built in, by name.

const invoice = `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Invoice {{number}}</title></head>
<body>
<h1>Invoice {{number}}</h1>
<p>{{customer.name}}{{#if customer.email}} &lt;{{customer.email}}&gt;{{/if}}</p>
<table>
<tr><th>#</th><th>Item</th><th>Price</th></tr>
{{#each items}}<tr{{#if reduced}} class="reduced"{{/if}}><td>{{@index}}</td><td>{{name}}</td><td>{{price}} {{../currency}}</td></tr>
{{else}}<tr><td colspan="3">Nothing was bought.</td></tr>
{{/each}}</table>
{{#unless paid}}<p><strong>Please pay by {{due}}.</strong></p>
{{/unless}}</body>
</html>
`;

export const TEMPLATES = { invoice };
