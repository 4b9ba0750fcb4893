// An `http` function: a fresh instance for each request, and the web's own fetch events. console.log() goes to the log.

// What is done here is done once, when the component is built.
const GREETING = "Hello from @NAME@!";

async function respond(request) {
  const url = new URL(request.url);
  const name = url.searchParams.get("name");
  const text = `${GREETING}${name ? ` And hello, ${name}.` : ""}\n${request.method} ${url.pathname}\n`;
  return new Response(text, { headers: { "content-type": "text/plain; charset=utf-8" } });
}

addEventListener("fetch", (event) => event.respondWith(respond(event.request)));
