-- HS256 for nginx in its fastest ordinary form: the HMAC of libcrypto, which nginx has loaded already, called through
-- LuaJIT's FFI, and verified tokens kept in an LRU cache, as sq-agent's proxy keeps them. A hit still looks at the expiry.

require("resty.core")
local ffi = require("ffi")
local cjson = require("cjson.safe")
local decode = require("ngx.base64").decode_base64url
local lrucache = require("resty.lrucache")

ffi.cdef([[
    typedef struct evp_md_st EVP_MD;
    const EVP_MD *EVP_sha256(void);
    unsigned char *HMAC(const EVP_MD *md, const void *key, int key_len, const unsigned char *data, size_t n,
                        unsigned char *out, unsigned int *out_len);
    int CRYPTO_memcmp(const void *a, const void *b, size_t len);
]])

local C = ffi.C
local digest = ffi.new("unsigned char[32]")
local digest_length = ffi.new("unsigned int[1]")

local Verifier = {}
Verifier.__index = Verifier

local function new(secret)
    return setmetatable({ secret = secret, verified = assert(lrucache.new(10000)) }, Verifier)
end

function Verifier:verify(token)
    local head, payload, signature = token:match("^([%w_-]+)%.([%w_-]+)%.([%w_-]+)$")
    if not head then return end
    local header = cjson.decode(decode(head) or "")
    if type(header) ~= "table" or header.alg ~= "HS256" then return end
    signature = decode(signature)
    if not signature or #signature ~= 32 then return end
    local signed = head .. "." .. payload
    C.HMAC(C.EVP_sha256(), self.secret, #self.secret, signed, #signed, digest, digest_length)
    if C.CRYPTO_memcmp(digest, signature, 32) ~= 0 then return end
    local claims = cjson.decode(decode(payload) or "")
    if type(claims) ~= "table" or type(claims.sub) ~= "string" or type(claims.exp) ~= "number" then return end
    return claims
end

-- The `sub` of a good token, or nil.
function Verifier:sub_of(authorization)
    if not authorization or authorization:sub(1, 7) ~= "Bearer " then return end
    local token = authorization:sub(8)
    local claims = self.verified:get(token)
    if not claims then
        claims = self:verify(token)
        if not claims then return end
        self.verified:set(token, claims)
    end
    if claims.exp > ngx.time() then return claims.sub end
end

return { new = new }
