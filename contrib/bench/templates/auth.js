// What nginx asks at each request (auth_request) whether to let it in and where to: a token checked in Node, as an admin API would do it. Verified
// tokens are kept, as sq-agent keeps them; a hit still looks at the expiry. Arguments: port, secret, a file with {tenant: [backend, key]}.
const crypto = require("node:crypto");
const fs = require("node:fs");
const http = require("node:http");

const [port, secret, file] = process.argv.slice(2);
const tenants = new Map(Object.entries(JSON.parse(fs.readFileSync(file, "utf8"))));
const verified = new Map();

function verify(token) {
  const parts = token.split(".");
  if (parts.length !== 3) return;
  const given = Buffer.from(parts[2], "base64url");
  const right = crypto.createHmac("sha256", secret).update(`${parts[0]}.${parts[1]}`).digest();
  if (given.length !== right.length || !crypto.timingSafeEqual(given, right)) return;
  try {
    const header = JSON.parse(Buffer.from(parts[0], "base64url"));
    const claims = JSON.parse(Buffer.from(parts[1], "base64url"));
    if (header.alg === "HS256" && typeof claims.sub === "string" && typeof claims.exp === "number") return claims;
  } catch {}
}

function claimsOf(authorization) {
  if (!authorization?.startsWith("Bearer ")) return;
  const token = authorization.slice(7);
  let claims = verified.get(token);
  if (!claims) {
    claims = verify(token);
    if (!claims) return;
    if (verified.size >= 10000) verified.clear();
    verified.set(token, claims);
  }
  if (claims.exp > Date.now() / 1000) return claims;
}

const server = http.createServer((request, response) => {
  const claims = claimsOf(request.headers.authorization);
  const tenant = claims && tenants.get(claims.sub);
  if (tenant) response.writeHead(204, { "X-User-ID": claims.sub, "X-Backend": tenant[0], "X-Key": tenant[1] });
  else response.writeHead(401);
  response.end();
});
server.keepAliveTimeout = 0;
server.listen(Number(port), "127.0.0.1");
