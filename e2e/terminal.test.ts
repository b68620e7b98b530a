/** A terminal from end to end: this host's on one side, the guest's on the other, and `bandsox` between them. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { cli } from './support/command-line.js'
import { HostTerminal, setTerminal, settingsOf } from './support/host-terminal.js'
import { type TestStorage, temporaryStorage, until } from './support/storage.js'

let storage: TestStorage
const run = (args: string[]) => cli(storage.folder, args)
const start = (...args: string[]) => HostTerminal.start(storage.folder, args)

before(async () => {
  storage = await temporaryStorage()
  const { status, stderr } = await run(['create', 'bandsox/base', '--name', 'box'])
  assert.equal(status, 0, stderr)
})

after(async () => {
  await run(['vm', 'delete', '--force', 'box'])
  await storage.assertNothingLeft()
  await storage[Symbol.asyncDispose]()
})

const countInGuest = async (text: string): Promise<number> => {
  const { stdout } = await run(['exec', 'box', 'sh', '-c', `ps | grep -v grep | grep -c '${text}' || true`, 'count'])
  return Number(stdout)
}

test('a shell at a terminal: its name, size and kind, echo and line editing, a resize, its exit status', async () => {
  const terminal = start('terminal', 'box')
  const { tty, before } = await terminal.begins()
  await terminal.sees('# ')
  assert.notEqual(settingsOf(tty), before)
  terminal.type('tty; stty size; echo $TERM\r')
  await terminal.sees('tty; stty size; echo $TERM\r\n') // the guest's echo
  await terminal.sees(/\/dev\/pts\/\d+\r\n30 100\r\nxterm\r\n/)
  terminal.type('echo goox\x7fd-bye\r') // DEL takes the x back
  await terminal.sees('\ngood-bye\r\n')
  setTerminal(tty, 'cols', '90', 'rows', '20')
  terminal.type('stty size\r')
  await terminal.sees('20 90\r\n')
  terminal.type('exit 7\r')
  assert.deepEqual(await terminal.ends(), { status: 7, after: before })
})

test('a resize is told to the command while it runs', async () => {
  const script = 'trap "stty size; exit 0" WINCH; echo ready; while :; do sleep 0.1; done'
  const terminal = start('exec', '-it', 'box', '--', 'sh', '-c', script)
  const { tty, before } = await terminal.begins()
  await terminal.sees('ready')
  setTerminal(tty, 'cols', '132', 'rows', '43')
  await terminal.sees('43 132\r\n')
  assert.deepEqual(await terminal.ends(), { status: 0, after: before })
})

test('Ctrl-C ends what runs in the foreground of the guest, Ctrl-Z stops it, and the shell goes on', async () => {
  const terminal = start('terminal', '-e', 'PS1=ready> ', 'box')
  const { before } = await terminal.begins()
  await terminal.sees('ready> ')
  terminal.type('sleep 5551\r')
  await until(async () => (await countInGuest('sleep 5551')) === 1, 'sleep to begin')
  terminal.type('\x03')
  await terminal.sees('ready> ')
  terminal.type('echo "was $?"\r')
  await terminal.sees(/was 130\r\nready> /)
  assert.equal(await countInGuest('sleep 5551'), 0)
  terminal.type('sleep 5552\r')
  await until(async () => (await countInGuest('sleep 5552')) === 1, 'sleep to begin')
  terminal.type('\x1a')
  await terminal.sees('ready> ')
  terminal.type('jobs; kill -9 %1; wait\r')
  await terminal.sees(/Stopped.*sleep 5552/)
  await terminal.sees('ready> ')
  terminal.type('\x04') // Ctrl-D at an empty line
  assert.equal((await terminal.ends()).after, before)
})

test('every byte passes both ways unharmed', async () => {
  const terminal = start('exec', '-it', 'box', '--', 'sh', '-c', 'stty raw -echo; echo ready; head -c 256; echo end')
  const { before } = await terminal.begins()
  await terminal.sees('ready\n') // without the CR that a terminal of the host would have added
  const bytes = Buffer.from(Array.from({ length: 256 }, (_, index) => index))
  terminal.type(bytes)
  const [, shown = ''] = await terminal.sees(/^([\s\S]*)end\n/)
  assert.deepEqual(Buffer.from(shown, 'latin1'), bytes)
  assert.deepEqual(await terminal.ends(), { status: 0, after: before })
})

test('a terminal belongs to the user of the command', async () => {
  const script = 'id -un; stat -c "%U %a" $(tty); echo opened > $(tty); cat /dev/tty'
  const terminal = start('exec', '-it', '-u', 'sandbox', 'box', 'sh', '-c', script)
  await terminal.begins()
  await terminal.sees('sandbox\r\nsandbox 620\r\nopened\r\n')
  terminal.type('typed\r')
  await terminal.sees('typed\r\ntyped\r\n')
  terminal.type('\x04')
  assert.equal((await terminal.ends()).status, 0)
})

test('-t without -i leaves this terminal as it is, and Ctrl-C is ours', async () => {
  const terminal = start('exec', '-t', 'box', '--', 'sh', '-c', 'tty; exec sleep 5553')
  const { tty, before } = await terminal.begins()
  await terminal.sees(/\/dev\/pts\/\d+\r+\n/)
  assert.equal(settingsOf(tty), before)
  terminal.type('\x03')
  await terminal.sees('interrupted by SIGINT')
  await until(async () => (await countInGuest('sleep 5553')) === 0, 'sleep to end')
  await terminal.close() // Ctrl-C has ended the host's shell as well
})

/** A shell with a job in a process group of its own, and a command in the foreground. */
const jobs = (seconds: number) => `set -m; trap '' HUP; sleep ${seconds} & echo ready; sleep ${seconds}`

for (const [signal, status] of [
  ['SIGTERM', 130],
  ['SIGINT', 130],
  ['SIGHUP', 130],
  ['SIGQUIT', 130],
] as const) {
  test(`${signal} gives the terminal back, and ends all that ran at it`, async () => {
    const terminal = start('exec', '-it', 'box', '--', 'sh', '-c', jobs(6661))
    const { tty, before, pid } = await terminal.begins()
    await terminal.sees('ready')
    assert.notEqual(settingsOf(tty), before)
    process.kill(pid, signal)
    await terminal.sees(`interrupted by ${signal}`)
    assert.deepEqual(await terminal.ends(), { status, after: before })
    await until(async () => (await countInGuest('sleep 6661')) === 0, 'the session to end')
  })
}

test('the keys Enter ~ . give it back though the guest does not answer, and the end of the VM does, with the reason', async () => {
  assert.equal((await run(['create', 'bandsox/base', '--name', 'victim'])).status, 0)
  const [one, other] = [start('terminal', 'victim'), start('terminal', 'victim')]
  const before = [(await one.begins()).before, (await other.begins()).before]
  await Promise.all([one.sees('# '), other.sees('# ')])
  assert.equal((await run(['vm', 'pause', 'victim'])).status, 0)
  one.type('nobody answers\r~.')
  await one.sees('left by its keys')
  assert.deepEqual(await one.ends(), { status: 130, after: before[0] })
  assert.equal((await run(['vm', 'delete', '--force', 'victim'])).status, 0)
  await other.sees('bandsox: the guest closed the connection')
  assert.deepEqual(await other.ends(), { status: 74, after: before[1] })
})

test('a command that cannot be started gives it back', async () => {
  const terminal = start('exec', '-it', 'box', '--', 'no-such-program')
  const { before } = await terminal.begins()
  await terminal.sees('no such command')
  assert.deepEqual(await terminal.ends(), { status: 127, after: before })
})

test('a terminal that is closed ends the command', async () => {
  const terminal = start('exec', '-it', 'box', '--', 'sh', '-c', jobs(6662))
  const { pid } = await terminal.begins()
  await terminal.sees('ready')
  await terminal.close()
  await until(() => !isAlive(pid), 'bandsox to end')
  await until(async () => (await countInGuest('sleep 6662')) === 0, 'the session to end')
})

test('kill -9 leaves nothing in the guest; the terminal is mended by stty sane', async () => {
  const terminal = start('exec', '-it', 'box', '--', 'sh', '-c', jobs(6663))
  const { before, pid } = await terminal.begins()
  await terminal.sees('ready')
  assert.ok((await countInGuest('sleep 6663')) > 0)
  process.kill(pid, 'SIGKILL')
  const { status, after } = await terminal.ends()
  assert.equal(status, 137)
  assert.notEqual(after, before)
  for (const setting of [' icanon', ' echo ', ' isig', ' opost', ' icrnl'])
    assert.ok(terminal.sane.includes(setting), setting)
  // The guest waits 20 s for a host to come back, before it takes it for dead.
  await until(async () => (await countInGuest('sleep 6663')) === 0, 'the session to end', 40_000)
})

test('a stopped bandsox gives the terminal back for as long', async () => {
  const terminal = start('terminal', 'box')
  const { tty, before, pid } = await terminal.begins()
  await terminal.sees('# ')
  const raw = settingsOf(tty)
  process.kill(pid, 'SIGTSTP')
  await until(() => settingsOf(tty) === before, 'the terminal to be given back')
  setTerminal(tty, 'cols', '70', 'rows', '17')
  process.kill(pid, 'SIGCONT')
  await until(() => settingsOf(tty) === raw, 'the terminal to be raw again')
  terminal.type('stty size\r')
  await terminal.sees('17 70\r\n')
  terminal.type('exit\r')
  assert.deepEqual(await terminal.ends(), { status: 0, after: before })
})

test('run makes a sandbox for a terminal, and removes it', async () => {
  const terminal = start('run', '-it', 'bandsox/base')
  const { before } = await terminal.begins()
  await terminal.sees('# ')
  terminal.type('tty; exit 3\r')
  await terminal.sees(/\/dev\/pts\/\d+\r\n/)
  assert.deepEqual(await terminal.ends(), { status: 3, after: before })
  assert.match((await run(['vm', 'list'])).stdout, /Total: 1 VM/)
})

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false // nobody has the number
  }
}
