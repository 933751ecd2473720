#!lua name=kith1
-- Kith's storage functions, library version 1.4.
--
-- Every mutation of chat data is one call of one function on one partition. KEYS[1] is the partition's version hash `{tag}v`; all
-- other keys of the partition share its hash tag and are derived from it, so a call never leaves its slot. ARGV[1] is the token of
-- the claim under which the caller writes, ARGV[2] the highest outbox version that Kafka has acknowledged (0: trim nothing).
--
-- Functions do not roll back: each one checks everything before its first write. Replies start with the partition's version after
-- the call. Refusals are errors whose first word the storage service knows:
--   FENCED <holder>   the token or the node is not the claim's
--   K1REFUSE <why>    the call is not allowed as the data stand
--   K1CONFLICT <n>    condition n of a compare-and-swap does not hold
--   K1FOREIGN <meta>  the partition belongs to another ChatCluster or has another layout
--   K1CORRUPT <key>   a stored value is not what this library writes

local VERSION = '1.4'

local node_id = nil

-- The node's id does not change while it holds data, so it is asked for once.
local function me()
  if not node_id then
    node_id = server.call('CLUSTER', 'MYID')
  end
  return node_id
end

local function n(x)
  return string.format('%.0f', x)
end

local function fail(text)
  return server.error_reply(text)
end

-- A stored number that counts something: whole, and small enough that it can be counted on. Nil for whatever else stands there.
local MOST = 9007199254740991

local function whole(x)
  local number = x and string.find(x, '^%d+$') and tonumber(x)
  return number and number <= MOST and number or nil
end

-- Opens a partition for a call: its tag and version, or the refusal.
local function open(keys, args)
  local v = server.call('HMGET', keys[1], 'claim', 'node', 'ver', 'holder')
  if not v[1] or v[1] ~= args[1] or v[2] ~= me() then
    return nil, fail('FENCED ' .. (v[3] and v[4] or ''))
  end
  local ver = whole(v[3] or '0')
  if not ver then return nil, fail('K1CORRUPT ' .. keys[1] .. ' ver') end
  return { key = keys[1], tag = string.sub(keys[1], 1, -2), ver = ver, events = 0 }
end

-- Gives an event the next version and puts it into the outbox; privileged messages are marked beside it.
local function emit(p, body, privileged)
  p.ver = p.ver + 1
  p.events = p.events + 1
  if privileged then
    server.call('XADD', p.tag .. 'o', n(p.ver) .. '-0', 'e', body, 'p', '1')
  else
    server.call('XADD', p.tag .. 'o', n(p.ver) .. '-0', 'e', body)
  end
end

-- Ends a mutation: the version, and the outbox trimmed to what is not yet published. Always writes, so that WAIT covers the call.
local function close(p, args)
  server.call('HSET', p.key, 'ver', n(p.ver))
  local published = tonumber(args[2]) or 0
  if published > 0 then
    server.call('XTRIM', p.tag .. 'o', 'MINID', n(published + 1) .. '-0')
  end
end

local function version()
  return VERSION
end

-- Hashes that are paged and counted: beside each stands a sorted set of its field names. It is derived: whenever it does not hold as many
-- names as the hash (an older storage service wrote), it is built anew.
local function index_of(p, suffix)
  local kind = string.sub(suffix, 1, 2)
  if kind == 'f:' or kind == 'b:' then return p.tag .. 'i:' .. suffix end
  return nil
end

local function is_whole(p, suffix, index)
  return server.call('HLEN', p.tag .. suffix) == server.call('ZCARD', index)
end

local function build_index(p, suffix, index)
  server.call('DEL', index)
  local words = {}
  local function flush()
    if #words > 0 then server.call('ZADD', index, unpack(words)) end
    words = {}
  end
  for _, name in ipairs(server.call('HKEYS', p.tag .. suffix)) do
    words[#words + 1] = 0
    words[#words + 1] = name
    if #words >= 1000 then flush() end
  end
  flush()
end

-- How many fields of a hash begin with `prefix` (one byte, or none: all), or how many members a sorted set has.
local function count(p, suffix, prefix)
  if string.sub(suffix, 1, 2) == 'l:' then return server.call('ZCARD', p.tag .. suffix) end
  local index = index_of(p, suffix)
  if prefix == '' or not index then return server.call('HLEN', p.tag .. suffix) end
  if is_whole(p, suffix, index) then
    return server.call('ZLEXCOUNT', index, '[' .. prefix, '(' .. string.char(string.byte(prefix) + 1))
  end
  local found = 0
  for _, name in ipairs(server.call('HKEYS', p.tag .. suffix)) do
    if string.sub(name, 1, 1) == prefix then found = found + 1 end
  end
  return found
end

-- claim: token, 0, holder address, meta ("uid/P/K"). Answers version, entries in the outbox, the holder before.
local function claim(keys, args)
  local v = server.call('HMGET', keys[1], 'ver', 'holder', 'meta')
  if v[3] and v[3] ~= args[4] then
    return fail('K1FOREIGN ' .. v[3])
  end
  local ver = whole(v[1] or '0')
  if not ver then return fail('K1CORRUPT ' .. keys[1] .. ' ver') end
  server.call('HSET', keys[1], 'claim', args[1], 'node', me(), 'holder', args[3], 'meta', args[4], 'ver', n(ver))
  local tag = string.sub(keys[1], 1, -2)
  return { ver, server.call('XLEN', tag .. 'o'), v[2] or '' }
end

-- trim: only what close does.
local function trim(keys, args)
  local p, refused = open(keys, args)
  if not p then return refused end
  close(p, args)
  return { p.ver }
end

-- The rule by which everything that a user adds to a conversation is allowed, for appends, edits and reactions alike: 'OK', or why not; nil
-- and what is damaged otherwise. `muted` and `dissolved` are the conversation's own fields.
local function may_write(p, cid, user, now, muted, dissolved)
  local row = server.call('HGET', p.tag .. 'g:' .. cid, user)
  if not row then return 'NOT_MEMBER' end
  local role, muted_until, blocked = string.match(row, '^(%d)|%d+|%d+|(%d+)|(%d)$')
  if not role then return nil, p.tag .. 'g:' .. cid .. ' ' .. user end
  -- After the membership: who is no member is not told that there has been such a group.
  if dissolved == '1' then return 'DISSOLVED' end
  if blocked == '1' then return 'BLOCKED' end
  if tonumber(muted_until) > now then return 'MUTED' end
  if muted == '1' and role == '1' then return 'MUTED' end
  return 'OK'
end

-- The refusal that follows from the rule; none if the user may.
local function unwritable(p, cid, user, now, muted, dissolved)
  local verdict, corrupt = may_write(p, cid, user, now, muted, dissolved)
  if corrupt then return fail('K1CORRUPT ' .. corrupt) end
  if verdict ~= 'OK' then return fail('K1REFUSE ' .. verdict) end
  return nil
end

-- Changes of members of one conversation that are remembered.
local MOST_CHANGES = 10000

-- Says that the set of changes holds those that brought the members from version `from` to version `to`, and forgets the oldest of too many.
-- In the conversation's hash stand the version from which on it is whole (`wf`) and the one up to which (`wt`): a storage service that
-- changes members and knows nothing of this leaves `wt` behind, and so shows that its changes are missing.
local function note_changes(p, cid, from, to)
  local ckey, wkey = p.tag .. 'c:' .. cid, p.tag .. 'w:' .. cid
  local c = server.call('HMGET', ckey, 'wf', 'wt')
  local first, last = whole(c[1]), whole(c[2])
  -- Several changes of one version, or one that is restored again.
  if first and last == to then return end
  if not first or last ~= from then first = from end
  local over = server.call('ZCARD', wkey) - MOST_CHANGES
  if over > 0 then
    local gone = server.call('ZRANGE', wkey, over - 1, over - 1, 'WITHSCORES')
    first = math.max(first, tonumber(gone[2]))
    server.call('ZREMRANGEBYRANK', wkey, 0, over - 1)
  end
  server.call('HSET', ckey, 'wf', n(first), 'wt', n(to))
end

-- What is written, with what the conditions have found in the place that was left for it.
local function filled(p, value)
  if not p.found then return value end
  return (string.gsub(value, '\1', p.found))
end

-- Carries out an operation S, N, D, Z, X, Y or W, which stands at args[i]; answers the number of its words, nil for another operation.
local function write(p, args, i)
  local op, key = args[i], p.tag .. (args[i + 1] or '')
  if op == 'S' or op == 'N' then
    server.call(op == 'S' and 'HSET' or 'HSETNX', key, args[i + 2], filled(p, args[i + 3]))
    local names = index_of(p, args[i + 1])
    if names then server.call('ZADD', names, 0, args[i + 2]) end
    return 4
  elseif op == 'D' then
    server.call('HDEL', key, args[i + 2])
    local names = index_of(p, args[i + 1])
    if names then server.call('ZREM', names, args[i + 2]) end
    return 3
  elseif op == 'Z' then
    server.call('ZADD', key, args[i + 2], args[i + 3])
    return 4
  elseif op == 'X' then
    server.call('ZADD', key, 'XX', args[i + 2], args[i + 3])
    return 4
  elseif op == 'Y' then
    server.call('ZREM', key, args[i + 2])
    return 3
  elseif op == 'W' then
    note_changes(p, args[i + 1], tonumber(args[i + 2]), tonumber(args[i + 3]))
    return 4
  end
  return nil
end

-- Carries out the operations from args[i] on, E (emit) among them.
local function carry_out(p, args, i)
  while args[i] do
    local words = write(p, args, i)
    if not words then
      emit(p, filled(p, args[i + 1]))
      words = 2
    end
    i = i + words
  end
end

-- How old a message may be that a retry finds.
local RETRY_MS = 48 * 3600 * 1000

-- The time in a row's message id: 48 bits of Unix ms stand first.
local function sent_at(row)
  local at = 0
  for i = 1, 6 do
    at = at * 256 + string.byte(row, i)
  end
  return at
end

-- Seq and row of the message that an earlier call has stored under the identity of `row`, which ends at byte `last`; nothing if there is
-- none of the last 48 hours; nil, nil and the key of what is damaged otherwise.
local function sent_before(p, cid, days, hash, row, last, now)
  for _, day in ipairs(days) do
    local dkey = p.tag .. 'd:' .. day .. ':' .. cid
    local seq = server.call('HGET', dkey, hash)
    if seq and not whole(seq) then return nil, nil, dkey end
    local found = seq and server.call('XRANGE', p.tag .. 'm:' .. cid, seq .. '-0', seq .. '-0')
    local stored = found and found[1] and found[1][2][2]
    -- Another sender's or another id's row under the same hash is a collision, not a duplicate.
    if stored and string.sub(stored, 17, last) == string.sub(row, 17, last) and now - sent_at(stored) <= RETRY_MS then
      return seq, stored
    end
  end
  return nil
end

-- append: conversation, sender, day, yesterday, dedupe hash, dedupe lifetime in seconds, length of the row's identity, now, hot limit,
-- privileged, row, tomorrow, the day before yesterday, then operations as of cas that make the conversation where it does not stand. They are
-- carried out with the message or not at all. Answers version, seq, and the stored row when an earlier call had stored it (whether it says
-- the same is for the caller to see), or nothing and 1 when the conversation was made.
--
-- The days are those of the caller's clock, and clocks differ: around midnight an earlier call may stand under the day after; and 24 hours
-- after a slow clock's midnight a fast one is two days ahead. An older storage service names two days, and is told OTHER_PAYLOAD.
local function append(keys, args)
  local p, refused = open(keys, args)
  if not p then return refused end
  local cid, sender, row, now, privileged = args[3], args[4], args[13], tonumber(args[10]), args[12] == '1'
  local ckey, mkey = p.tag .. 'c:' .. cid, p.tag .. 'm:' .. cid
  local c = server.call('HMGET', ckey, 's', 'f', 'mu', 'di')
  local makes = not c[1] and args[16]
  if not c[1] and not makes then return fail('K1REFUSE NO_CONVERSATION') end
  local end_seq, floor = whole(c[1] or '0'), whole(c[2] or '0')
  if not end_seq or not floor then return fail('K1CORRUPT ' .. ckey .. ' s') end
  local days = { args[5], args[14], args[6], args[15] }
  if not args[14] then days = { args[5], args[6] } end
  local seen, stored, damaged = sent_before(p, cid, days, args[7], row, 16 + tonumber(args[9]), now)
  if damaged then return fail('K1CORRUPT ' .. damaged) end
  if seen then
    if not args[14] and string.sub(stored, 17) ~= string.sub(row, 17) then return fail('K1REFUSE OTHER_PAYLOAD') end
    close(p, args)
    return { p.ver, tonumber(seen), stored }
  end
  local gkey = p.tag .. 'g:' .. cid
  if privileged then
    if c[4] == '1' then return fail('K1REFUSE DISSOLVED') end
  elseif not makes or server.call('HEXISTS', gkey, sender) == 1 then
    -- A block may have written the sender's row before the conversation was made.
    local unallowed = unwritable(p, cid, sender, now, c[3], c[4])
    if unallowed then return unallowed end
  end
  local seq = end_seq + 1
  if seq - floor > tonumber(args[11]) then return fail('K1REFUSE HOT_LIMIT') end
  local s = n(seq)
  -- The first write: it fails where the conversation's seq is behind its messages.
  local added = server.pcall('XADD', mkey, s .. '-0', 'm', row)
  if type(added) == 'table' and added.err then return fail('K1CORRUPT ' .. mkey .. ' ' .. s) end
  if makes then carry_out(p, args, 16) end
  server.call('HSET', ckey, 's', s, 'a', args[10])
  local dkey = p.tag .. 'd:' .. args[5] .. ':' .. cid
  server.call('HSET', dkey, args[7], s)
  server.call('EXPIRE', dkey, args[8], 'NX')
  -- Who sends has read.
  if not privileged or server.call('HEXISTS', gkey, sender) == 1 then
    server.call('HSET', p.tag .. 'r:' .. cid, 's' .. sender, s, 'r' .. sender, s)
  end
  emit(p, 'm' .. s .. ' ' .. cid, privileged)
  close(p, args)
  if makes then return { p.ver, seq, false, 1 } end
  return { p.ver, seq }
end

-- Devices of one member of which a conversation keeps the delivered cursor.
local MOST_DEVICES = 100

-- Notes that a device has a delivered cursor, by which the cursors of a member who leaves are found; of too many devices the one that came
-- first is forgotten.
local function note_device(rkey, user, device)
  local devices = {}
  for one in string.gmatch(server.call('HGET', rkey, 'D' .. user) or '', '[^/]+') do
    if one == device then return end
    devices[#devices + 1] = one
  end
  if #devices >= MOST_DEVICES then
    server.call('HDEL', rkey, 'd' .. user .. '/' .. table.remove(devices, 1))
  end
  devices[#devices + 1] = device
  server.call('HSET', rkey, 'D' .. user, table.concat(devices, '/'))
end

-- cursor: conversation, user, field ('r' .. user, 'd' .. user/device, 'c' .. user), seq, event. Moves a cursor of a member forward, never
-- past the conversation's seq (0: to it); a \1 in the event becomes the new value. Answers version, the cursor, whether it moved.
local function cursor(keys, args)
  local p, refused = open(keys, args)
  if not p then return refused end
  local cid, field = args[3], args[5]
  local s = server.call('HGET', p.tag .. 'c:' .. cid, 's')
  if not s then return fail('K1REFUSE NO_CONVERSATION') end
  s = whole(s)
  if not s then return fail('K1CORRUPT ' .. p.tag .. 'c:' .. cid .. ' s') end
  if server.call('HEXISTS', p.tag .. 'g:' .. cid, args[4]) == 0 then return fail('K1REFUSE NOT_MEMBER') end
  local want = tonumber(args[6])
  if want == 0 or want > s then want = s end
  local rkey = p.tag .. 'r:' .. cid
  local stored = server.call('HGET', rkey, field)
  local now = whole(stored or '0')
  if not now then return fail('K1CORRUPT ' .. rkey .. ' ' .. field) end
  if want <= now then
    close(p, args)
    return { p.ver, now, 0 }
  end
  server.call('HSET', rkey, field, n(want))
  if not stored and string.sub(field, 1, 1) == 'd' then
    note_device(rkey, args[4], string.sub(field, #args[4] + 3))
  end
  if args[7] ~= '' then
    emit(p, (string.gsub(args[7], '\1', n(want))))
  end
  close(p, args)
  return { p.ver, want, 1 }
end

-- hints: user, then (conversation, activity) pairs: raises the activity hints of entries that the user's list holds. Answers version, how
-- many of them it does not hold.
local function hints(keys, args)
  local p, refused = open(keys, args)
  if not p then return refused end
  local lkey = p.tag .. 'l:' .. args[3]
  local missing = 0
  for i = 4, #args, 2 do
    if server.call('ZSCORE', lkey, args[i]) then
      server.call('ZADD', lkey, 'XX', 'GT', args[i + 1], args[i])
    else
      missing = missing + 1
    end
  end
  close(p, args)
  return { p.ver, missing }
end

-- Entries of a full list that are looked at to find one that gives way.
local LOOKED_AT = 100

-- The entry that gives way to a new one: a cleared one, which stands at the bottom with no activity; where any may, the oldest that is not
-- pinned, else the oldest.
local function gives_way(p, user, any)
  local oldest = server.call('ZRANGE', p.tag .. 'l:' .. user, 0, LOOKED_AT - 1, 'WITHSCORES')
  if oldest[2] and tonumber(oldest[2]) <= 0 then return oldest[1] end
  if not any then return nil end
  for i = 1, #oldest, 2 do
    local settings = server.call('HGET', p.tag .. 's:' .. user, oldest[i])
    if not settings or string.sub(settings, 1, 1) ~= '1' then return oldest[i] end
  end
  return oldest[1]
end

-- enter: user, conversation, activity, most entries, whether any entry of a full list gives way (1) or a cleared one alone, the event, the
-- event of an entry that gives way (a \1 in it becomes its conversation). An entry that stands is raised, and nothing is told. Answers
-- version, events emitted, the conversation that gave way.
local function enter(keys, args)
  local p, refused = open(keys, args)
  if not p then return refused end
  local user, cid = args[3], args[4]
  local lkey = p.tag .. 'l:' .. user
  if server.call('HEXISTS', p.tag .. 'u:' .. user, 'v') == 0 then return fail('K1REFUSE NO_USER') end
  if server.call('ZSCORE', lkey, cid) then
    server.call('ZADD', lkey, 'XX', 'GT', args[5], cid)
    close(p, args)
    return { p.ver, 0, '' }
  end
  local gone = nil
  if server.call('ZCARD', lkey) >= tonumber(args[6]) then
    gone = gives_way(p, user, args[7] == '1')
    if not gone then return fail('K1REFUSE FULL') end
    server.call('ZREM', lkey, gone)
    server.call('HDEL', p.tag .. 's:' .. user, gone)
    emit(p, (string.gsub(args[9], '\1', function() return gone end)))
  end
  server.call('ZADD', lkey, args[5], cid)
  emit(p, args[8])
  close(p, args)
  return { p.ver, p.events, gone or '' }
end

-- index: suffix of a hash that is paged: builds its index anew where it is not whole. Answers version.
local function index(keys, args)
  local p, refused = open(keys, args)
  if not p then return refused end
  local found = index_of(p, args[3])
  if found and not is_whole(p, args[3], found) then build_index(p, args[3], found) end
  close(p, args)
  return { p.ver }
end

-- cas: number of conditions, conditions (suffix, field, '=' .. value, '+' present, '-' absent, or 'w' .. now: the suffix is of members, of
-- whom the one named may write; suffix, prefix of fields, '<' .. how many there may be at most after one more; suffix, field, 's': a number
-- that counts, whose successor takes the place of each \1 in what S and N set and E emits), then operations:
--   S suffix field value    set a field          D suffix field    delete it
--   N suffix field value    set it unless it is there
--   Z suffix score member   set a score          Y suffix member   remove it
--   X suffix score member   set the score of a member that is there
--   W conversation from to  its changes of members between these versions stand in its set of changes
--   E body                  emit an event
-- Answers version, events emitted, and the number that took the place of \1 where one did.
local function cas(keys, args)
  local p, refused = open(keys, args)
  if not p then return refused end
  local i = 4
  for c = 1, tonumber(args[3]) do
    local want = string.sub(args[i + 2], 1, 1)
    if want == '<' then
      if count(p, args[i], args[i + 1]) >= tonumber(string.sub(args[i + 2], 2)) then return fail('K1REFUSE FULL') end
    elseif want == 'w' then
      local cid = string.sub(args[i], 3)
      local c = server.call('HMGET', p.tag .. 'c:' .. cid, 'mu', 'di')
      local unallowed = unwritable(p, cid, args[i + 1], tonumber(string.sub(args[i + 2], 2)), c[1], c[2])
      if unallowed then return unallowed end
    elseif want == 's' then
      local found = whole(server.call('HGET', p.tag .. args[i], args[i + 1]))
      if not found or found >= MOST then return fail('K1CORRUPT ' .. p.tag .. args[i] .. ' ' .. args[i + 1]) end
      p.found = n(found + 1)
    else
      local stored = server.call('HGET', p.tag .. args[i], args[i + 1])
      local holds = not stored
      if want == '=' then
        holds = stored == string.sub(args[i + 2], 2)
      elseif want == '+' then
        holds = stored and true
      end
      if not holds then return fail('K1CONFLICT ' .. c) end
    end
    i = i + 3
  end
  carry_out(p, args, i)
  close(p, args)
  return { p.ver, p.events, p.found and tonumber(p.found) }
end

-- Operations of restore, with the number of their words.
local WORDS = { S = 4, N = 4, D = 3, Z = 4, X = 4, Y = 3, W = 4, M = 4, I = 6 }

-- Why the rows of a restoration cannot be written; none if they can. A row stands already, or comes behind the newest.
local function unfit(p, args)
  local tops = {}
  local i = 4
  while args[i] do
    local words = WORDS[args[i]]
    if not words or not args[i + words - 1] then return 'restore ' .. args[i] end
    if args[i] == 'M' then
      local mkey, seq = p.tag .. 'm:' .. args[i + 1], tonumber(args[i + 2])
      if not seq then return mkey .. ' ' .. args[i + 2] end
      if not tops[mkey] then
        local last = server.call('XREVRANGE', mkey, '+', '-', 'COUNT', 1)[1]
        tops[mkey] = last and tonumber(string.match(last[1], '^(%d+)')) or 0
      end
      if seq > tops[mkey] then
        tops[mkey] = seq
      else
        local found = server.call('XRANGE', mkey, n(seq) .. '-0', n(seq) .. '-0')[1]
        if not found or found[2][2] ~= args[i + 3] then return mkey .. ' ' .. n(seq) end
      end
    end
    i = i + words
  end
  return nil
end

-- restore: version, then operations S, D, Z, X, Y and W as of cas, and
--   M conversation seq row                  a message's row, unless it stands there already
--   I conversation day hash seq end         by which a retry finds a message; a new bucket lives until `end` (Unix s)
-- Brings the partition to the version without emitting: what is restored is on the event log. Answers the version.
local function restore(keys, args)
  local p, refused = open(keys, args)
  if not p then return refused end
  local ver = tonumber(args[3])
  if not ver or ver <= p.ver then return fail('K1REFUSE NOT_ABOVE') end
  local why = unfit(p, args)
  if why then return fail('K1CORRUPT ' .. why) end
  local i = 4
  while args[i] do
    local op = args[i]
    if op == 'M' then
      local mkey, id = p.tag .. 'm:' .. args[i + 1], args[i + 2] .. '-0'
      if #server.call('XRANGE', mkey, id, id) == 0 then
        server.call('XADD', mkey, id, 'm', args[i + 3])
      end
    elseif op == 'I' then
      local dkey = p.tag .. 'd:' .. args[i + 2] .. ':' .. args[i + 1]
      server.call('HSET', dkey, args[i + 3], args[i + 4])
      server.call('EXPIREAT', dkey, args[i + 5], 'NX')
    else
      write(p, args, i)
    end
    i = i + WORDS[op]
  end
  p.ver = ver
  close(p, args)
  return { p.ver }
end

-- get: (suffix, field) pairs; field '*' is the whole hash, '#' and a prefix the number of its fields. Answers version, then one value each.
local function get(keys, args)
  local p, refused = open(keys, args)
  if not p then return refused end
  local out = { p.ver }
  for i = 2, #args, 2 do
    if args[i + 1] == '*' then
      out[#out + 1] = server.call('HGETALL', p.tag .. args[i])
    elseif string.sub(args[i + 1], 1, 1) == '#' then
      out[#out + 1] = n(count(p, args[i], string.sub(args[i + 1], 2)))
    else
      out[#out + 1] = server.call('HGET', p.tag .. args[i], args[i + 1])
    end
  end
  return out
end

-- What a message weighs in an answer beside its row and its overlay, at most: ids, positions, times, and what the form of answers adds.
local BESIDE = 1024

-- Entries of a stream that are read together where bytes are bounded: what is read and given to nobody stays small.
local AT_ONCE = 16

-- What a message weighs, whether there is room for it in `left` bytes (`whole`: there is, whatever it weighs), and its overlay if so: an
-- overlay's bytes are counted before they are read. `xkey`: the overlays, where there are any.
local function within(xkey, seq, row, left, whole)
  local more = xkey and server.call('HSTRLEN', xkey, seq) or 0
  local weight = #row + more + BESIDE
  local fits = whole or weight <= left
  return weight, fits, fits and more > 0 and server.call('HGET', xkey, seq)
end

-- history: conversation, before, after, limit, bytes, whether the first message comes whatever it weighs (absent: it does). Answers version,
-- seq, floor, then seq, row, overlay of each message, newest first unless `after` is given; then 1 if there was no room in the bytes for
-- the next one.
local function history(keys, args)
  local p, refused = open(keys, args)
  if not p then return refused end
  local cid, before, after, limit = args[2], tonumber(args[3]), tonumber(args[4]), tonumber(args[5])
  local c = server.call('HMGET', p.tag .. 'c:' .. cid, 's', 'f')
  if not c[1] then return { p.ver, -1, 0 } end
  if not whole(c[1]) or not whole(c[2] or '0') then return fail('K1CORRUPT ' .. p.tag .. 'c:' .. cid .. ' s') end
  local mkey, xkey = p.tag .. 'm:' .. cid, p.tag .. 'x:' .. cid
  if server.call('EXISTS', xkey) == 0 then xkey = nil end
  local read, from, to = 'XREVRANGE', before > 0 and n(before - 1) .. '-0' or '+', '-'
  if after >= 0 then read, from, to = 'XRANGE', n(after + 1) .. '-0', '+' end
  local out = { p.ver, tonumber(c[1]), tonumber(c[2] or '0') }
  local left, first = tonumber(args[6]), args[7] ~= '0'
  while limit > 0 do
    local rows = server.call(read, mkey, from, to, 'COUNT', n(math.min(limit, AT_ONCE)))
    for _, entry in ipairs(rows) do
      local seq, row = string.match(entry[1], '^(%d+)'), entry[2][2]
      local weight, fits, overlay = within(xkey, seq, row, left, first)
      if not fits then
        out[#out + 1] = 1
        return out
      end
      out[#out + 1] = seq
      out[#out + 1] = row
      out[#out + 1] = overlay
      left, first, from = left - weight, false, '(' .. entry[1]
    end
    if #rows < math.min(limit, AT_ONCE) then break end
    limit = limit - #rows
  end
  return out
end

-- heads: user, device, bytes of last messages (0: without; 1: all, whatever they weigh), conversations. Answers version, then for each: the
-- conversation's hash, the user's member row, read, own send, cleared and delivered cursors, the last row and its overlay (seq and floor
-- alone where there is no such conversation). In place of a row for which there was no room in the bytes stands what it weighs.
local function heads(keys, args)
  local p, refused = open(keys, args)
  if not p then return refused end
  local user, device, left, whole = args[2], args[3], tonumber(args[4]), args[4] == '1'
  local last = left > 0
  local out = { p.ver }
  for i = 5, #args do
    local cid = args[i]
    local c = server.call('HGETALL', p.tag .. 'c:' .. cid)
    local head = { c }
    if #c > 0 then
      if user ~= '' then
        local r = server.call('HMGET', p.tag .. 'r:' .. cid, 'r' .. user, 's' .. user, 'c' .. user, 'd' .. user .. '/' .. device)
        head[2] = server.call('HGET', p.tag .. 'g:' .. cid, user)
        head[3], head[4], head[5], head[6] = r[1], r[2], r[3], r[4]
      else
        head[2], head[3], head[4], head[5], head[6] = false, false, false, false, false
      end
      local entry = last and server.call('XREVRANGE', p.tag .. 'm:' .. cid, '+', '-', 'COUNT', 1)[1]
      if entry then
        local row = entry[2][2]
        local weight, fits, overlay = within(p.tag .. 'x:' .. cid, string.match(entry[1], '^(%d+)'), row, left, whole)
        if fits then
          head[7], head[8] = row, overlay
          left = left - weight
        else
          head[7] = weight
        end
      end
    end
    out[#out + 1] = head
  end
  return out
end

-- members: conversation, join order after which to start, limit. Answers version, member version, count, then user, order, row each.
local function members(keys, args)
  local p, refused = open(keys, args)
  if not p then return refused end
  local cid = args[2]
  local c = server.call('HMGET', p.tag .. 'c:' .. cid, 'mv', 'n')
  if not c[1] then return { p.ver, -1, 0 } end
  if not whole(c[1]) or not whole(c[2] or '0') then return fail('K1CORRUPT ' .. p.tag .. 'c:' .. cid .. ' mv') end
  local out = { p.ver, tonumber(c[1]), tonumber(c[2] or '0') }
  local page = server.call('ZRANGE', p.tag .. 'j:' .. cid, '(' .. args[3], '+inf', 'BYSCORE', 'LIMIT', 0, args[4], 'WITHSCORES')
  for i = 1, #page, 2 do
    out[#out + 1] = page[i]
    out[#out + 1] = page[i + 1]
    out[#out + 1] = server.call('HGET', p.tag .. 'g:' .. cid, page[i])
  end
  return out
end

-- list: user, direction (D newest first, A oldest first), bound of activity, offset among those, limit. Answers version, then
-- conversation, activity, settings each.
local function list(keys, args)
  local p, refused = open(keys, args)
  if not p then return refused end
  local user = args[2]
  local lkey, skey = p.tag .. 'l:' .. user, p.tag .. 's:' .. user
  local page
  if args[3] == 'D' then
    page = server.call('ZRANGE', lkey, args[4], '-inf', 'BYSCORE', 'REV', 'LIMIT', args[5], args[6], 'WITHSCORES')
  else
    page = server.call('ZRANGE', lkey, args[4], '+inf', 'BYSCORE', 'LIMIT', args[5], args[6], 'WITHSCORES')
  end
  local out = { p.ver }
  local settings = server.call('EXISTS', skey) == 1
  for i = 1, #page, 2 do
    out[#out + 1] = page[i]
    out[#out + 1] = page[i + 1]
    out[#out + 1] = settings and server.call('HGET', skey, page[i]) or false
  end
  return out
end

-- Whether `a` comes before `b` byte by byte: the engine's own order, which Lua's comparison follows in some locales alone.
local function before(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- The rank of the first member behind `member` among those of this score, of which the first has the rank `low`; with `newest` counted from
-- the highest score.
local function behind(key, low, score, member, newest)
  local high = low + server.call('ZCOUNT', key, score, score)
  while low < high do
    local middle = math.floor((low + high) / 2)
    local past
    if newest then
      past = before(server.call('ZRANGE', key, middle, middle, 'REV')[1], member)
    else
      past = before(member, server.call('ZRANGE', key, middle, middle)[1])
    end
    if past then high = middle else low = middle + 1 end
  end
  return low
end

-- walk: user, activity and conversation of the entry behind which to go on (both empty: from the newest), limit. Answers version, then
-- conversation, activity, settings each, newest first. Finds its place without passing what lies before, whatever has changed there.
local function walk(keys, args)
  local p, refused = open(keys, args)
  if not p then return refused end
  local user, score, member, limit = args[2], args[3], args[4], tonumber(args[5])
  local lkey, skey = p.tag .. 'l:' .. user, p.tag .. 's:' .. user
  local low = 0
  if score ~= '' then
    low = server.call('ZCOUNT', lkey, '(' .. score, '+inf')
    low = behind(lkey, low, score, member, true)
  end
  local page = server.call('ZRANGE', lkey, low, low + limit - 1, 'REV', 'WITHSCORES')
  local out = { p.ver }
  local settings = server.call('EXISTS', skey) == 1
  for i = 1, #page, 2 do
    out[#out + 1] = page[i]
    out[#out + 1] = page[i + 1]
    out[#out + 1] = settings and server.call('HGET', skey, page[i]) or false
  end
  return out
end

-- changed: conversation, member version, version and member of the change behind which to go on (both empty: from the first), limit. Answers
-- version, member version, count, whether what has changed since that version is not known, then user, version of the change and row (none:
-- no member any more) each, by version. Finds its place without passing what lies before.
local function changed(keys, args)
  local p, refused = open(keys, args)
  if not p then return refused end
  local cid, since, score, member, limit = args[2], tonumber(args[3]), args[4], args[5], tonumber(args[6])
  local ckey, wkey = p.tag .. 'c:' .. cid, p.tag .. 'w:' .. cid
  local c = server.call('HMGET', ckey, 'mv', 'n', 'wf', 'wt')
  if not c[1] then return { p.ver, -1, 0, 0 } end
  local version, members = whole(c[1]), whole(c[2] or '0')
  if not version or not members then return fail('K1CORRUPT ' .. ckey .. ' mv') end
  local out = { p.ver, version, members, 0 }
  if since == version then return out end
  local first, last = whole(c[3]), whole(c[4])
  if since > version or not first or since < first or last ~= version then
    out[4] = 1
    return out
  end
  local low
  if score == '' then
    low = server.call('ZCOUNT', wkey, '-inf', n(since))
  else
    low = server.call('ZCOUNT', wkey, '-inf', '(' .. score)
    low = behind(wkey, low, score, member, false)
  end
  local page = server.call('ZRANGE', wkey, low, low + limit - 1, 'WITHSCORES')
  for i = 1, #page, 2 do
    out[#out + 1] = page[i]
    out[#out + 1] = page[i + 1]
    out[#out + 1] = server.call('HGET', p.tag .. 'g:' .. cid, page[i])
  end
  return out
end

-- fields: suffix of a hash that has an index, field behind which to start (empty: from the first), field before which to end (empty: none),
-- limit, bytes. Answers version, whether there is more, then name, value each, in the order of names; -1 in place of the second: the
-- index must be built first.
local function fields(keys, args)
  local p, refused = open(keys, args)
  if not p then return refused end
  local suffix, limit, most = args[2], tonumber(args[5]), tonumber(args[6])
  local names = index_of(p, suffix)
  if not is_whole(p, suffix, names) then return { p.ver, -1 } end
  local from = args[3] == '' and '-' or '(' .. args[3]
  local to = args[4] == '' and '+' or '(' .. args[4]
  local found = server.call('ZRANGE', names, from, to, 'BYLEX', 'LIMIT', 0, limit + 1)
  local out = { p.ver, #found > limit and 1 or 0 }
  local bytes = 0
  for i = 1, math.min(#found, limit) do
    local value = server.call('HGET', p.tag .. suffix, found[i])
    if value then
      bytes = bytes + #found[i] + #value
      if bytes > most and #out > 2 then
        out[2] = 1
        break
      end
      out[#out + 1] = found[i]
      out[#out + 1] = value
    end
  end
  return out
end

-- outbox: version after which to start, limit, bytes, whether privileged messages are told (as M instead of m). Answers version, then
-- version, body, row (of messages) each.
local function outbox(keys, args)
  local p, refused = open(keys, args)
  if not p then return refused end
  local out = { p.ver }
  local from, limit, bytes, most = n(tonumber(args[2]) + 1) .. '-0', tonumber(args[3]), 0, tonumber(args[4])
  while limit > 0 do
    local entries = server.call('XRANGE', p.tag .. 'o', from, '+', 'COUNT', n(math.min(limit, AT_ONCE)))
    for _, entry in ipairs(entries) do
      local body = entry[2][2]
      local row = false
      if string.sub(body, 1, 1) == 'm' then
        local seq, cid = string.match(body, '^m(%d+) (.+)$')
        local found = whole(seq) and server.call('XRANGE', p.tag .. 'm:' .. cid, seq .. '-0', seq .. '-0')
        row = found and found[1] and found[1][2][2] or false
        if args[5] == '1' and entry[2][3] == 'p' then
          body = 'M' .. string.sub(body, 2)
        end
      end
      bytes = bytes + #body + (row and #row or 0)
      if bytes > most and #out > 1 then return out end
      out[#out + 1] = string.match(entry[1], '^(%d+)')
      out[#out + 1] = body
      out[#out + 1] = row
      from = '(' .. entry[1]
    end
    if #entries < math.min(limit, AT_ONCE) then break end
    limit = limit - #entries
  end
  return out
end

local function mutation(name, callback, flags)
  server.register_function({ function_name = name, callback = callback, flags = flags or {} })
end

local function reading(name, callback)
  server.register_function({ function_name = name, callback = callback, flags = { 'no-writes' } })
end

reading('k1_version', version)
mutation('k1_claim', claim, { 'allow-oom' })
mutation('k1_trim', trim, { 'allow-oom' })
mutation('k1_append', append)
mutation('k1_cursor', cursor, { 'allow-oom' })
mutation('k1_hints', hints, { 'allow-oom' })
mutation('k1_enter', enter)
mutation('k1_index', index, { 'allow-oom' })
mutation('k1_cas', cas)
-- For what takes away, or writes over little: at full memory a user can still free what is theirs.
mutation('k1_free', cas, { 'allow-oom' })
mutation('k1_restore', restore)
reading('k1_get', get)
reading('k1_history', history)
reading('k1_heads', heads)
reading('k1_members', members)
reading('k1_changed', changed)
reading('k1_list', list)
reading('k1_walk', walk)
reading('k1_fields', fields)
reading('k1_outbox', outbox)
