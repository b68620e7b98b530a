/** Images that are hostile or odd, and what each must become: its files, or the error that refuses it. */
import { createHash } from 'node:crypto'
import type { ErrorCode } from '@bandsox/sdk'
import type { ImageLimits } from '../layer/limits.js'
import type { Listing } from './image-listing.js'
import {
  block,
  character,
  entry,
  extension,
  file,
  folder,
  gzip,
  hardlink,
  header,
  opaque,
  paxRecord,
  type SparseFormat,
  sparseFile,
  symlink,
  tar,
  tarEnd,
  whiteout,
} from './tar-builder.js'

export interface ImageCase {
  /** A sentence's end: "an image with …". */
  name: string
  /** Blobs, the lowest first. */
  layers: Buffer[]
  /** What they unpack to, where that is not the blob itself. */
  unpacked?: Buffer[]
  limits?: Partial<ImageLimits>
  /** Without the root folder, where nobody describes it. */
  expect: Listing | { code: ErrorCode; message: RegExp }
  /** One for each warning. */
  warnings?: RegExp[]
}

const DIR = 'directory 755 0:0'
const text = (content: string, more = ''): string => `file 644 0:0 ${content.length} ${JSON.stringify(content)}${more}`
const invalid = (message: RegExp) => ({ code: 'layer-invalid', message }) as const
const hostile = (message: RegExp) => ({ code: 'layer-hostile', message }) as const
const tooLarge = (message: RegExp) => ({ code: 'image-too-large', message }) as const
const good = (name: string, layers: Buffer[], expect: Listing): ImageCase => ({ name, layers, expect })
const bad = (name: string, layer: Buffer, expect: ImageCase['expect']): ImageCase => ({ name, layers: [layer], expect })
const shortHash = (content: string | Buffer): string => createHash('sha256').update(content).digest('hex').slice(0, 12)

const outside = hostile(/leads out of the image/)
const escapes: ImageCase[] = [
  bad('a path above the root', tar(file('../x', 'a')), hostile(/"\.\.\/x" leads out of the image/)),
  bad('a path that leaves in its middle', tar(file('a/../../x')), outside),
  bad('a folder above the root', tar(folder('..')), outside),
  bad('an absolute path above the root', tar(file('/../etc/passwd')), outside),
  bad('a PAX path above the root', tar(file('x', '', { pax: [['path', 'a/../../x']] })), outside),
  bad('a GNU path above the root', tar(file('x', '', { longPath: '../x' })), outside),
  bad('a prefix above the root', tar(file('x', '', { prefix: '..' })), outside),
  good('absolute paths', [tar(file('/etc/x', 'a'), file('//y', 'b'))], { etc: DIR, 'etc/x': text('a'), y: text('b') }),
  good('paths with empty parts and dots', [tar(file('./a/.//b', '1'), file('c/../d', '2'))], {
    a: DIR,
    'a/b': text('1'),
    d: text('2'),
  }),
  good('a file behind a relative link', [tar(folder('usr/lib'), symlink('lib', 'usr/lib'), file('lib/x', 'a'))], {
    lib: 'symlink 777 0:0 -> usr/lib',
    usr: DIR,
    'usr/lib': DIR,
    'usr/lib/x': text('a'),
  }),
  good('a file behind an absolute link', [tar(symlink('s', '/etc/cron.d'), file('s/job', 'a'))], {
    etc: DIR,
    'etc/cron.d': DIR,
    'etc/cron.d/job': text('a'),
    s: 'symlink 777 0:0 -> /etc/cron.d',
  }),
  good('a file behind a link to its own parent', [tar(symlink('a/up', '..'), file('a/up/b', 'x'))], {
    a: DIR,
    'a/up': 'symlink 777 0:0 -> ..',
    b: text('x'),
  }),
  good('a link from a deep folder to the root', [tar(symlink('a/b/s', '/'), file('a/b/s/x', '1'))], {
    a: DIR,
    'a/b': DIR,
    'a/b/s': 'symlink 777 0:0 -> /',
    x: text('1'),
  }),
  bad('a file behind a link above the root', tar(symlink('s', '../../etc'), file('s/x')), hostile(/"s\/x" leads out/)),
  bad('a file behind an absolute link above the root', tar(symlink('s', '/../etc'), file('s/x')), outside),
  bad('a folder behind a deep link above the root', tar(symlink('a/s', '../../x'), folder('a/s/y')), outside),
  bad('a chain of links above the root', tar(symlink('a', 'b'), symlink('b', '..'), file('a/x')), outside),
  bad('a whiteout behind a link above the root', tar(symlink('s', '..'), whiteout('s/x')), outside),
  good('links that lead out, with nothing behind them', [tar(symlink('s', '../../../etc/shadow'))], {
    s: 'symlink 777 0:0 -> ../../../etc/shadow',
  }),
  {
    ...good(
      'links above the root, as systems with /run have them, beside which all its files lie',
      [
        tar(folder('run'), folder('var'), symlink('var/run', '../../run'), file('run/pid', '1')),
        tar(file('run/lock', '2'), file('var/log', '3'), hardlink('var/again', 'var/run')),
        tar(whiteout('var/run'), file('var/run/own', '4')),
      ],
      {
        run: DIR,
        'run/lock': text('2'),
        'run/pid': text('1'),
        var: DIR,
        'var/again': 'symlink 777 0:0 -> ../../run',
        'var/log': text('3'),
        'var/run': DIR,
        'var/run/own': text('4'),
      },
    ),
  },
  bad('a circle of links', tar(symlink('a', 'b'), symlink('b', 'a'), file('a/x')), invalid(/"a\/x" .*circle of links/)),
  bad('a link to itself', tar(symlink('a', 'a'), file('a/x')), invalid(/circle of links/)),
  bad('a file in a file', tar(file('a', 'x'), file('a/b')), invalid(/"a\/b" lies in a file/)),
  bad('a file behind a link to a file', tar(file('f'), symlink('s', 'f'), file('s/x')), invalid(/lies in a file/)),
  bad(
    'a hard link above the root',
    tar(hardlink('a', '../../etc/passwd')),
    hostile(/"\.\.\/\.\.\/etc\/passwd" leads out/),
  ),
  bad('a hard link that leaves through a link', tar(symlink('s', '..'), hardlink('a', 's/etc/passwd')), outside),
  bad(
    'a hard link to an absolute path that is not there',
    tar(hardlink('a', '/etc/passwd')),
    invalid(/"a" leads to nothing.*"etc\/passwd"/),
  ),
  good('a hard link to an absolute path', [tar(file('etc/passwd', 'x'), hardlink('a', '/etc/passwd'))], {
    a: text('x'),
    etc: DIR,
    'etc/passwd': 'same as a',
  }),
  good('a hard link through a link', [tar(file('usr/x', '1'), symlink('s', 'usr'), hardlink('h', 's/x'))], {
    h: text('1'),
    s: 'symlink 777 0:0 -> usr',
    usr: DIR,
    'usr/x': 'same as h',
  }),
  bad('a whiteout of its own folder', tar(file('a/.wh..')), hostile(/"a\/\.wh\.\." leads out/)),
  bad('a whiteout of the folder above', tar(file('.wh...')), outside),
  bad('a whiteout of nothing', tar(file('a/.wh.')), invalid(/whiteout "a\/\.wh\." names nothing/)),
  good('a whiteout of four dots', [tar(file('....', 'x')), tar(whiteout('....'))], {}),
  good('what aufs keeps about itself', [tar(folder('.wh..wh.plnk'), file('.wh..wh.aufs'), file('a', '1'))], {
    a: text('1'),
  }),
  bad('a file for its root', tar(file('.', 'x')), invalid(/the root folder is a file: "\."/)),
  bad('a file with no name', tar(file('')), invalid(/the root folder is a file: ""/)),
  bad('a link behind more links than Linux follows', tar(...links(41), file('l0/x')), invalid(/circle of links/)),
  good('a link behind as many links as Linux follows', [tar(...links(40), file('l0/x', '1'))], {
    ...Object.fromEntries(Array.from({ length: 40 }, (_, index) => [`l${index}`, `symlink 777 0:0 -> l${index + 1}`])),
    l40: DIR,
    'l40/x': text('1'),
  }),
  bad(
    'a name behind a link that no system holds',
    tar(symlink('s', 'n'.repeat(300)), file('s/x')),
    invalid(/a name has 300 bytes/),
  ),
  bad(
    'a path that grows behind links beyond what a system holds',
    tar(symlink('a', 'd/'.repeat(2000)), symlink(`${'d/'.repeat(2000)}b`, 'e/'.repeat(2000)), file('a/b/x')),
    invalid(/"a\/b\/x" lies too deep/),
  ),
]

/** `l0` to `l<count>`, which is made by the entry behind it. */
function links(count: number): Buffer[] {
  return Array.from({ length: count }, (_, index) => symlink(`l${index}`, `l${index + 1}`))
}

const devices: ImageCase[] = [
  bad('a disk', tar(block('sda', 8, 0)), hostile(/"sda" is a block-device \(8:0\)/)),
  bad('the memory of the host', tar(character('mem', 1, 1)), hostile(/"mem" is a character-device \(1:1\)/)),
  bad('a block device with the number of /dev/null', tar(block('null', 1, 3)), hostile(/block-device \(1:3\)/)),
  bad("overlay's whiteout", tar(character('x', 0, 0)), hostile(/\(0:0\)/)),
  {
    ...bad("overlay's whiteout, where devices are allowed", tar(character('x', 0, 0)), hostile(/\(0:0\)/)),
    limits: { allowDevices: true },
  },
  {
    ...good('a disk, where devices are allowed', [tar(block('sda', 8, 1), character('tap', 10, 200))], {
      sda: 'block-device 660 0:0 8:1',
      tap: 'character-device 666 0:0 10:200',
    }),
    limits: { allowDevices: true },
  },
  {
    ...bad('a device with a number that none has', tar(block('x', 2 ** 40, 1)), invalid(/"x" .*1099511627776:1/)),
    limits: { allowDevices: true },
  },
  good(
    'what every /dev has',
    [tar(character('dev/null', 1, 3), character('dev/tty', 5, 0), entry({ path: 'p', type: '6' }))],
    {
      dev: DIR,
      'dev/null': 'character-device 666 0:0 1:3',
      'dev/tty': 'character-device 666 0:0 5:0',
      p: 'fifo 644 0:0',
    },
  ),
]

const sized = (code: ImageCase, limits: Partial<ImageLimits>): ImageCase => ({ ...code, limits })
const bombs: ImageCase[] = [
  sized(bad('more bytes than it may', tar(file('a', 'x'.repeat(9000))), tooLarge(/over 5000 bytes/)), {
    maxBytes: 5000,
  }),
  sized(
    {
      name: 'more bytes in all layers than it may',
      layers: [tar(file('a')), tar(file('b'))],
      expect: tooLarge(/bytes/),
    },
    { maxBytes: 2500 },
  ),
  sized(
    bad('trailing data beyond what it may', Buffer.concat([tar(file('a')), Buffer.alloc(9000)]), tooLarge(/bytes/)),
    { maxBytes: 5000 },
  ),
  ...(['gnu', 'pax-0.0', 'pax-0.1', 'pax-1.0'] as const).map((format) =>
    sized(
      bad(
        `a hole of a TiB (${format})`,
        tar(sparseFile('a', format, { sizeBytes: 2 ** 40, map: [[0, 1]], data: 'x' })),
        tooLarge(/bytes/),
      ),
      {},
    ),
  ),
  sized(bad('more files than it may', tar(file('a'), file('b'), file('c')), tooLarge(/over 2 files and folders/)), {
    maxEntries: 2,
  }),
  sized(bad('the same file more often than it may', tar(file('a'), file('a'), file('a')), tooLarge(/over 2 files/)), {
    maxEntries: 2,
  }),
  sized(bad('more parents than it may have files', tar(file('a/b/c/d')), tooLarge(/over 3 files/)), { maxEntries: 3 }),
  sized(
    bad(
      'more parents behind a link than it may have files',
      tar(symlink('s', 'a/b/c/d'), file('s/x')),
      tooLarge(/over 5 files/),
    ),
    { maxEntries: 5 },
  ),
  sized(bad('whiteouts beyond what it may have files', tar(whiteout('a'), whiteout('b')), tooLarge(/over 1 files/)), {
    maxEntries: 1,
  }),
  sized(
    bad(
      'extended attributes that take more memory than its files may',
      tar(
        ...Array.from({ length: 5 }, (_, index) =>
          file(`f${index}`, '', { pax: [['SCHILY.xattr.user.a', Buffer.alloc(60_000)]] }),
        ),
      ),
      tooLarge(/over 500 files/),
    ),
    { maxEntries: 500 },
  ),
  sized(
    bad(
      'links that take more memory than its files may',
      tar(...Array.from({ length: 50 }, (_, index) => symlink(`s${index}`, 'x'.repeat(4000)))),
      tooLarge(/over 300 files/),
    ),
    { maxEntries: 300 },
  ),
  sized(
    bad(
      'many files so deep that their names take more memory than its files may',
      tar(symlink('s', 'd/'.repeat(1000)), ...Array.from({ length: 500 }, (_, index) => file(`s/${index}`))),
      tooLarge(/over 2000 files/),
    ),
    { maxEntries: 2000 },
  ),
  ...[
    { where: 'files behind them', make: (index: number) => file(`s/${index}`) },
    { where: 'hard links through them', make: (index: number) => hardlink(`h${index}`, 's/f') },
    { where: 'whiteouts behind a file behind them', make: () => whiteout('s/f/x') },
  ].map(({ where, make }) =>
    sized(
      bad(
        `links that lead to and fro, with many ${where}`,
        tar(file('f'), folder('d'), toAndFro('s'), ...Array.from({ length: 50 }, (_, index) => make(index))),
        tooLarge(/over 1000 files/),
      ),
      { maxEntries: 1000 },
    ),
  ),
  sized(
    bad(
      'links that lead to and fro, behind the many hard links through them',
      tar(
        ...Array.from({ length: 50 }, (_, index) => hardlink(`h${index}`, 's/f')),
        folder('d'),
        toAndFro('s'),
        file('f'),
      ),
      tooLarge(/over 1000 files/),
    ),
    { maxEntries: 1000 },
  ),
  sized(
    bad(
      'small extended attributes that take more memory than its files may',
      tar(
        file('a', '', { pax: Array.from({ length: 2000 }, (_, index) => [`SCHILY.xattr.user.${index}`, ''] as const) }),
      ),
      tooLarge(/over 100 files .*many attributes/),
    ),
    { maxEntries: 100 },
  ),
]

/** 1300 folders away and back, and no name that takes memory. */
function toAndFro(path: string): Buffer {
  return symlink(path, 'd/../'.repeat(650))
}

const cut = (whole: Buffer, bytes: number): Buffer => whole.subarray(0, whole.length - bytes)
const hello = file('a', 'hello')
const helloTree = { a: text('hello') }
const packed = (name: string, blob: Buffer, unpacked: Buffer, expect: ImageCase['expect']): ImageCase => ({
  name,
  layers: [blob],
  unpacked: [unpacked],
  expect,
})
const containers: ImageCase[] = [
  packed('a layer of gzip', gzip(tar(hello)), tar(hello), helloTree),
  packed('a layer of two gzip members', Buffer.concat([gzip(hello), gzip(tarEnd)]), tar(hello), helloTree),
  packed(
    'garbage behind its gzip',
    Buffer.concat([gzip(tar(hello)), Buffer.from('garbage')]),
    tar(hello),
    invalid(/gzip: incorrect header check/),
  ),
  packed('zeros behind its gzip', Buffer.concat([gzip(tar(hello)), Buffer.alloc(99)]), tar(hello), helloTree),
  packed('a gzip that is cut short', cut(gzip(tar(hello)), 12), tar(hello), invalid(/gzip: unexpected end of file/)),
  packed(
    'a gzip with a wrong checksum',
    gzipWithWrongSum(tar(hello)),
    tar(hello),
    invalid(/gzip: incorrect data check/),
  ),
  packed('a gzip in a gzip', gzip(gzip(tar(hello))), gzip(tar(hello)), invalid(/is cut short|checksum|octal/)),
  packed('a layer of an empty gzip', gzip(Buffer.alloc(0)), Buffer.alloc(0), {}),
  good('a layer of no bytes', [Buffer.alloc(0)], {}),
  good('a layer of no files', [tarEnd], {}),
  good('no layers', [], {}),
  good('no empty blocks at its end', [hello], helloTree),
  good('one empty block at its end', [Buffer.concat([hello, Buffer.alloc(512)])], helloTree),
  bad(
    'a header behind one empty block',
    Buffer.concat([hello, Buffer.alloc(512), hello]),
    invalid(/empty block is followed/),
  ),
  good('a header behind its end', [Buffer.concat([tar(hello), file('b', 'unseen')])], helloTree),
  good('garbage behind its end', [Buffer.concat([tar(hello), Buffer.alloc(777, 'x')])], helloTree),
  bad('a tar cut short in a content', tar(hello).subarray(0, 514), invalid(/cut short, at byte 514/)),
  bad('a tar cut short in the padding', tar(hello).subarray(0, 1000), invalid(/cut short, at byte 1000/)),
  bad('a tar cut short in a header', tar(hello).subarray(0, 100), invalid(/cut short, at byte 100/)),
  bad('a tar cut short in its first empty block', tar(hello).subarray(0, 1024 + 100), invalid(/cut short/)),
  bad('a tar cut short in an extended header', file('x'.repeat(200)).subarray(0, 600), invalid(/cut short/)),
  bad('a tar cut short behind an extended header', extension('x', paxRecord('path', 'a')), invalid(/cut short/)),
  bad('an end behind an extended header', tar(extension('L', Buffer.from('a\0'))), invalid(/cut short/)),
  bad('a layer of xz', Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0, 0, 0]), invalid(/compressed with xz/)),
  bad('a layer of bzip2', Buffer.from('BZh91AY&SY'), invalid(/compressed with bzip2/)),
  bad('a layer of text', Buffer.from('<html>'.repeat(100)), invalid(/at byte 0: .*(checksum|octal)/)),
  bad(
    'a wrong checksum',
    tar(file('a', '', { checksum: 1 })),
    invalid(/at byte 0: a header's checksum is \d+, and it says 1/),
  ),
  bad(
    'a wrong checksum in its second header',
    tar(hello, file('b', '', { checksum: 7 })),
    invalid(/at byte 1024: .*checksum/),
  ),
  good('a checksum of signed bytes', [tar(file('\xe9', 'x', { checksum: signedSum('\xe9') }))], { '\xe9': text('x') }),
  bad('an unknown type', tar(entry({ path: 'a', type: 'Z' })), invalid(/unknown type "Z"/)),
  bad("GNU's folder of a dump", tar(entry({ path: 'a', type: 'D' })), invalid(/unknown type "D"/)),
  bad('a file of many volumes', tar(entry({ path: 'a', type: 'M' })), invalid(/unknown type "M"/)),
  good('the label of a tape', [tar(entry({ path: 'Volume 1', type: 'V' }), hello)], helloTree),
  good('a global header', [tar(extension('g', paxRecord('path', '../../x')), hello)], helloTree),
]

function gzipWithWrongSum(tarred: Buffer): Buffer {
  const blob = gzip(tarred)
  blob[blob.length - 8] = (blob[blob.length - 8] ?? 0) ^ 1
  return blob
}

/** As old writers sum, of a file of one byte with this name. */
function signedSum(path: string): number {
  const bytes = header({ path }, 1)
  bytes.fill(' ', 148, 156)
  return bytes.reduce((sum, byte) => sum + (byte > 127 ? byte - 256 : byte), 0)
}

/** As deep as a path can be. */
const deepPath = `${'d/'.repeat(2047)}f`
const pax = (...records: [string, string | Buffer | number][]): Buffer => file('a', 'hello', { pax: records })
const rawPax = (records: string): Buffer => tar(extension('x', Buffer.from(records, 'latin1')), hello)
const brokenPax = invalid(/extended header has a broken record at its byte 0/)
const headers: ImageCase[] = [
  bad('a PAX record without a length', rawPax('path=a\n'), brokenPax),
  bad('a PAX record of no length', rawPax('0 path=a\n'), brokenPax),
  bad('a PAX record longer than its header', rawPax('99 path=a\n'), brokenPax),
  bad('a PAX record that ends too early', rawPax('6 path=abc\n'), brokenPax),
  bad('a PAX record without an equals sign', rawPax('9 patha\n'), brokenPax),
  bad('a PAX record without a key', rawPax('5 =a\n'), brokenPax),
  bad('a PAX record of a negative length', rawPax('-9 path=a\n'), brokenPax),
  bad('a PAX record with a length in hexadecimal', rawPax('0x9 path=a\n'), brokenPax),
  bad('a PAX path with a NUL', tar(pax(['path', 'a\0b'])), invalid(/"path" holds a NUL/)),
  bad(
    'a PAX target with a NUL',
    tar(symlink('a', 'b', { pax: [['linkpath', 'a\0b']] })),
    invalid(/"linkpath" holds a NUL/),
  ),
  bad('a PAX key with a NUL', tar(pax(['pa\0th', 'b'])), invalid(/key of an extended header holds a NUL/)),
  good(
    'a PAX record that nobody knows, with any bytes',
    [tar(pax(['VENDOR.thing', Buffer.from([0, 255, 10, 61])]))],
    helloTree,
  ),
  good('a PAX record twice', [tar(pax(['path', 'b'], ['path', 'c']))], { c: text('hello') }),
  good('PAX records that take nothing back', [tar(pax(['path', ''], ['uid', ''], ['mtime', '']))], helloTree),
  good('an empty PAX header', [tar(extension('x', Buffer.alloc(0)), hello)], helloTree),
  good(
    'a PAX size over a wrong one in the header',
    [tar(file('a', 'hello', { size: 0, pax: [['size', 5]] }), file('b', 'x'))],
    {
      a: text('hello'),
      b: text('x'),
    },
  ),
  bad(
    'a PAX size that hides the next header',
    tar(file('a', 'hello', { pax: [['size', 600]] }), file('b', 'x'), Buffer.alloc(512)),
    invalid(/checksum|octal|cut short|empty block/),
  ),
  bad('a PAX size that is negative', tar(pax(['size', -1])), invalid(/size is no whole number: "-1"/)),
  bad('a PAX size that is no number', tar(pax(['size', '5x'])), invalid(/size is no whole number/)),
  bad('a PAX size beyond any number', tar(pax(['size', '9'.repeat(16)])), invalid(/size is no whole number/)),
  bad('a negative size', tar(file('a', '', { size: -1 })), invalid(/size is -1/)),
  bad('a huge size', tar(file('a', '', { size: 2 ** 52 })), invalid(/cut short/)),
  bad(
    'a size beyond any number',
    tar(file('a', '', { edit: (bytes) => bytes.fill(0x7f, 125, 136).fill(0x80, 124, 125) })),
    invalid(/size is \d/),
  ),
  bad(
    'a size that is no number',
    tar(file('a', '', { edit: (bytes) => bytes.write('12x4', 124) })),
    invalid(/size is no octal number/),
  ),
  bad(
    'an extended header of 2 MiB',
    tar(entry({ path: 'x', type: 'x', size: 2 ** 21 })),
    invalid(/extended header has 2097152 bytes/),
  ),
  bad('a long name of a TiB', tar(entry({ path: 'x', type: 'L', size: 2 ** 40 })), invalid(/extended header has/)),
  good(
    'a size for a folder and for links, with no bytes behind',
    [tar(folder('d', { size: 700 }), hello, hardlink('b', 'a', { size: 5 }))],
    {
      a: text('hello'),
      b: 'same as a',
      d: DIR,
    },
  ),
  good(
    "GNU's long names and targets",
    [
      tar(
        file('x', '1', { longPath: 'n'.repeat(200), format: 'gnu' }),
        symlink('s', 'x', { longTarget: 't'.repeat(300), format: 'gnu' }),
      ),
    ],
    { ['n'.repeat(200)]: text('1'), s: `symlink 777 0:0 -> ${'t'.repeat(300)}` },
  ),
  good('a GNU name over a PAX path, as Go has it', [tar(file('x', '1', { longPath: 'gnu', pax: [['path', 'pax']] }))], {
    gnu: text('1'),
  }),
  good('a PAX sparse name of a file that is not sparse', [tar(file('a', '1', { pax: [['GNU.sparse.name', 'b']] }))], {
    a: text('1'),
  }),
  good('a GNU name with bytes behind its NUL', [tar(extension('L', Buffer.from('b\0garbage')), hello)], {
    b: text('hello'),
  }),
  good('a prefix', [tar(file('b', '1', { prefix: 'deep/a' }))], { deep: DIR, 'deep/a': DIR, 'deep/a/b': text('1') }),
  good(
    'a prefix with no version behind its magic',
    [tar(file('b', '1', { prefix: 'a', edit: (bytes) => bytes.write('\0\0', 263, 'latin1') }))],
    { a: DIR, 'a/b': text('1') },
  ),
  good('bytes of GNU in place of a prefix', [tar(file('b', '1', { format: 'gnu', prefix: 'a' }))], { b: text('1') }),
  good(
    'headers of the seventies',
    [
      tar(
        file('a', '1', { format: 'v7' }),
        entry({ path: 'd/', type: '\0', format: 'v7', mode: 0o755 }),
        entry({ path: 'f', type: '\0', content: '2' }),
        entry({ path: 'c', type: '7', content: '3' }),
      ),
    ],
    {
      a: text('1'),
      c: text('3'),
      d: DIR,
      f: text('2'),
    },
  ),
  good('a file with a slash at its end, as Go has it', [tar(file('a/', 'hello'))], helloTree),
  bad(
    'a folder of the seventies with content',
    tar(entry({ path: 'd/', type: '\0', content: 'x' })),
    invalid(/a folder has 1 bytes of content/),
  ),
  good(
    'numbers padded with spaces, and bytes behind their NUL',
    [tar(file('a', 'hello', { edit: (bytes) => bytes.write('   644\0x', 100, 'latin1') }))],
    helloTree,
  ),
  good(
    'names with any bytes',
    [
      tar(
        file('\xff\xfe', '1'),
        file('a\nb', '2'),
        file('a\tb', '3'),
        file('"\'\\', '4'),
        file('-rf', '5'),
        file(' ', '6'),
        file('caf\xc3\xa9', '7'),
        file('\x01\x7f', '8'),
        file('*?[a]', '9'),
      ),
    ],
    {
      '\xff\xfe': text('1'),
      'a\nb': text('2'),
      'a\tb': text('3'),
      '"\'\\': text('4'),
      '-rf': text('5'),
      ' ': text('6'),
      'caf\xc3\xa9': text('7'),
      '\x01\x7f': text('8'),
      '*?[a]': text('9'),
    },
  ),
  good('a name of 255 bytes', [tar(file('n'.repeat(255), '1'))], { ['n'.repeat(255)]: text('1') }),
  bad('a name of 256 bytes', tar(file('n'.repeat(256), '1')), invalid(/a name has 256 bytes/)),
  good('a path of 4095 bytes', [tar(file(longPath(4095), '1'))], {
    ...parentsOf(longPath(4095)),
    [longPath(4095)]: text('1'),
  }),
  good('a path of 2047 folders', [tar(file(deepPath, '1'))], { ...parentsOf(deepPath), [deepPath]: text('1') }),
  bad('a path of 4096 bytes', tar(file(longPath(4096), '1')), invalid(/a path has 4096 bytes/)),
  bad('a target of 4096 bytes', tar(symlink('s', 'x'.repeat(4096))), invalid(/target of "s" has 4096 bytes/)),
  good('a target of 4095 bytes', [tar(symlink('s', 'x'.repeat(4095)))], {
    s: `symlink 777 0:0 -> ${'x'.repeat(4095)}`,
  }),
  bad('a link without a target', tar(symlink('s', '')), invalid(/symbolic link "s" has no target/)),
  bad('a hard link without a target', tar(hardlink('h', '')), invalid(/hard link "h" (has no target|leads to)/)),
  good(
    'setuid, setgid and sticky',
    [tar(file('su', 'x', { mode: 0o4755 }), folder('tmp', { mode: 0o1777 }), file('sg', '', { mode: 0o2711 }))],
    {
      sg: 'file 2711 0:0 0 ""',
      su: 'file 4755 0:0 1 "x"',
      tmp: 'directory 1777 0:0',
    },
  ),
  good('a mode with the bits of a type', [tar(file('a', 'hello', { mode: 0o100644 }))], helloTree),
  good(
    'large owners',
    [
      tar(
        file('a', '', { uid: 2_097_152, gid: 2_097_153 }),
        file('b', '', {
          pax: [
            ['uid', 2 ** 32 - 2],
            ['gid', 3_000_000],
          ],
        }),
        folder('d', { uid: 2 ** 31, gid: 65_534 }),
      ),
    ],
    {
      a: 'file 644 2097152:2097153 0 ""',
      b: 'file 644 4294967294:3000000 0 ""',
      d: 'directory 755 2147483648:65534',
    },
  ),
  bad(
    'the owner that means nobody to the kernel',
    tar(file('a', '', { uid: 2 ** 32 - 1 })),
    invalid(/uid is 4294967295, over/),
  ),
  bad('a group beyond 32 bits', tar(pax(['gid', 2 ** 32])), invalid(/gid is 4294967296, over/)),
  bad('a negative owner', tar(file('a', '', { uid: -2 })), invalid(/uid is -2/)),
  good(
    'times of all kinds',
    [
      tar(
        file('before', '', { mtime: -5 }),
        file('paxbefore', '', { pax: [['mtime', '-1.5']] }),
        file('fraction', '', { pax: [['mtime', '12.987654321']] }),
        file('late', '', { pax: [['mtime', String(2 ** 33)]] }),
        file('binary', '', { mtime: 2 ** 40 }),
        folder('d', { mtime: 77 }),
      ),
    ],
    {
      before: 'file 644 0:0 0 ""',
      binary: 'file 644 0:0 0 "" @4294967295',
      d: 'directory 755 0:0 @77',
      fraction: 'file 644 0:0 0 "" @12',
      late: 'file 644 0:0 0 "" @4294967295',
      paxbefore: 'file 644 0:0 0 ""',
    },
  ),
  bad('a time that is none', tar(pax(['mtime', 'yesterday'])), invalid(/mtime is no time/)),
]

/** Of this many bytes, in parts of 200. */
function longPath(bytes: number): string {
  const parts: string[] = []
  for (let left = bytes; left > 0; left -= 201) parts.push('p'.repeat(Math.min(200, left)))
  return parts.join('/')
}

function parentsOf(path: string): Listing {
  const parts = path.split('/')
  return Object.fromEntries(parts.slice(1).map((_, index) => [parts.slice(0, index + 1).join('/'), DIR]))
}

const capability = Buffer.from('0100000200040000000000000000000000000000', 'hex')
const attributes: ImageCase[] = [
  good(
    'extended attributes',
    [
      tar(
        file('ping', 'x', { pax: [['SCHILY.xattr.security.capability', capability]] }),
        file('u', '', {
          pax: [
            ['SCHILY.xattr.user.a', Buffer.from('\0\n=\xff', 'latin1')],
            ['SCHILY.xattr.user.empty', ''],
          ],
        }),
        folder('d', {
          pax: [
            ['SCHILY.xattr.user.d', 'v'],
            ['SCHILY.xattr.trusted.t', 'w'],
          ],
        }),
      ),
    ],
    {
      d: 'directory 755 0:0 trusted.t=77 user.d=76',
      ping: `file 644 0:0 1 "x" security.capability=${capability.toString('hex')}`,
      u: 'file 644 0:0 0 "" user.a=000a3dff user.empty=',
    },
  ),
  {
    ...good(
      'extended attributes that no disk holds',
      [
        tar(
          file('a', 'hello', {
            pax: [
              ['SCHILY.xattr.system.posix_acl_access', 'x'],
              ['SCHILY.xattr.user.b', 'y'],
            ],
          }),
          folder('d', { pax: [['SCHILY.xattr.system.posix_acl_default', 'x']] }),
          file('n', '', { pax: [['SCHILY.xattr.', 'x']] }),
        ),
      ],
      { a: text('hello', ' user.b=79'), d: DIR, n: text('') },
    ),
    warnings: [
      /"a" loses .*the disk cannot hold them: "system\.posix_acl_access"/,
      /"d" loses .*"system\.posix_acl_default"/,
      /"n" loses .*""/,
    ],
  },
  {
    ...good(
      "overlay's own attributes",
      [
        tar(
          folder('d', { pax: [['SCHILY.xattr.trusted.overlay.opaque', 'y']] }),
          file('a', 'hello', { pax: [['SCHILY.xattr.user.overlay.redirect', '/etc']] }),
        ),
      ],
      { a: text('hello'), d: DIR },
    ),
    warnings: [
      /"d" loses .*mislead the overlay in the guest: "trusted\.overlay\.opaque"/,
      /"a" loses .*mislead the overlay in the guest: "user\.overlay\.redirect"/,
    ],
  },
  {
    ...good(
      'many attributes of one file that no disk holds',
      [
        tar(
          file('a', 'hello', {
            pax: [...Array.from({ length: 9 }, (_, index) => `${index}`), 'trusted.overlay.x'].map(
              (name): [string, string] => [`SCHILY.xattr.${name}`, ''],
            ),
          }),
        ),
      ],
      helloTree,
    ),
    warnings: [/the guest: "trusted\.overlay\.x"$/, /hold them: "0", "1", "2", 6 more$/],
  },
  good(
    'as many bytes of extended attributes as it may',
    [tar(file('a', '', { pax: [['SCHILY.xattr.user.a', Buffer.alloc(65_536 - 19, 'x')]] }))],
    { a: `file 644 0:0 0 "" user.a=${Buffer.alloc(65_536 - 19, 'x').toString('hex')}` },
  ),
  bad(
    'too many bytes of extended attributes',
    tar(file('a', '', { pax: [['SCHILY.xattr.user.a', Buffer.alloc(65_536)]] })),
    invalid(/extended attributes of one file have over 65536/),
  ),
  bad(
    'too many extended attributes',
    tar(
      file('a', '', {
        pax: Array.from({ length: 3000 }, (_, index): [string, string] => [`SCHILY.xattr.user.${index}`, 'x']),
      }),
    ),
    invalid(/extended attributes of one file/),
  ),
  good('attributes of its root folder', [tar(folder('./', { mode: 0o700, uid: 5, gid: 6, mtime: 9 }), hello)], {
    '/': 'directory 700 5:6 @9',
    ...helloTree,
  }),
  good('attributes of its root folder twice', [tar(folder('.', { mode: 0o700 })), tar(folder('/', { mode: 0o711 }))], {
    '/': 'directory 711 0:0',
  }),
]

const formats: SparseFormat[] = ['gnu', 'pax-0.0', 'pax-0.1', 'pax-1.0']
const sparse = (format: SparseFormat, spec: Parameters<typeof sparseFile>[2]): Buffer =>
  tar(sparseFile('s', format, spec), hello)
const manyParts = Array.from({ length: 60 }, (_, index): [number, number] => [index * 10, 1])
const manyBytes = Array.from({ length: 600 }, (_, index) => (index % 10 === 0 ? 'x' : '\0')).join('')
const wideParts = Array.from({ length: 300 }, (_, index): [number, number] => [index * 20, 10])
const sparseFiles: ImageCase[] = [
  ...formats.flatMap((format): ImageCase[] => {
    const of = (name: string) => `${name} (${format})`
    return [
      good(
        of('a sparse file'),
        [
          sparse(format, {
            sizeBytes: 20,
            map: [
              [2, 3],
              [10, 2],
            ],
            data: 'abcde',
          }),
        ],
        {
          ...helloTree,
          s: text('\0\0abc\0\0\0\0\0de\0\0\0\0\0\0\0\0'),
        },
      ),
      good(
        of('a sparse file that says its end'),
        [
          sparse(format, {
            sizeBytes: 8,
            map: [
              [0, 1],
              [8, 0],
            ],
            data: 'x',
          }),
        ],
        {
          ...helloTree,
          s: text('x\0\0\0\0\0\0\0'),
        },
      ),
      good(
        of('a sparse file of many parts'),
        [sparse(format, { sizeBytes: 600, map: manyParts, data: 'x'.repeat(60) })],
        {
          ...helloTree,
          s: `file 644 0:0 600 ${shortHash(manyBytes)}`,
        },
      ),
      bad(
        of('a sparse file whose parts overlap'),
        sparse(format, {
          sizeBytes: 20,
          map: [
            [0, 5],
            [4, 1],
          ],
          data: 'abcdef',
        }),
        invalid(/sparse file of 20 bytes has 1 bytes at 4, after 5/),
      ),
      bad(
        of('a sparse file whose parts go backwards'),
        sparse(format, {
          sizeBytes: 20,
          map: [
            [9, 1],
            [4, 1],
          ],
          data: 'ab',
        }),
        invalid(/1 bytes at 4, after 10/),
      ),
      bad(
        of('a sparse file with a part behind its end'),
        sparse(format, { sizeBytes: 20, map: [[19, 2]], data: 'ab' }),
        invalid(/2 bytes at 19/),
      ),
      bad(
        of('a sparse file with less data than its map'),
        sparse(format, { sizeBytes: 20, map: [[0, 4]], data: 'ab' }),
        invalid(/has 2 bytes, and its map 4/),
      ),
      bad(
        of('a sparse file with more data than its map'),
        sparse(format, { sizeBytes: 20, map: [[0, 1]], data: 'ab' }),
        invalid(/has 2 bytes, and its map 1/),
      ),
    ]
  }),
  ...(['pax-0.1', 'pax-0.0', 'pax-1.0'] as const).flatMap((format): ImageCase[] => [
    bad(
      `a sparse map that is no list of numbers (${format})`,
      sparse(format, { sizeBytes: 20, map: [['x', 1]], data: 'a' }),
      invalid(/no whole number: "x"/),
    ),
    bad(
      `a sparse map with negative numbers (${format})`,
      sparse(format, { sizeBytes: 20, map: [[0, -1]], data: '' }),
      invalid(/no whole number: "-1"/),
    ),
    bad(
      `a sparse file of no size (${format})`,
      sparse(format, { sizeBytes: 'x', map: [[0, 1]], data: 'a' }),
      invalid(/no whole number: "x"/),
    ),
    bad(
      `a sparse map beyond any number (${format})`,
      sparse(format, { sizeBytes: 20, map: [['9'.repeat(16), 1]], data: 'a' }),
      invalid(/no whole number/),
    ),
    bad(
      `a sparse map whose sum is beyond any number (${format})`,
      sparse(format, { sizeBytes: 20, map: [[1, '9007199254740991']], data: 'a' }),
      invalid(/bytes at 1, after 0/),
    ),
  ]),
  good(
    'a sparse map that ends some blocks before what was read of it (pax-1.0)',
    [sparse('pax-1.0', { sizeBytes: 6000, map: wideParts, data: 'x'.repeat(3000) })],
    {
      ...helloTree,
      s: `file 644 0:0 6000 ${shortHash(`${'x'.repeat(10)}${'\0'.repeat(10)}`.repeat(300))}`,
    },
  ),
  good('a sparse file that is all hole (pax-1.0)', [sparse('pax-1.0', { sizeBytes: 5, map: [[5, 0]], data: '' })], {
    ...helloTree,
    s: text('\0\0\0\0\0'),
  }),
  bad(
    'a sparse map of half a pair',
    tar(
      file('s', 'a', {
        pax: [
          ['GNU.sparse.size', 5],
          ['GNU.sparse.map', '0,1,2'],
        ],
      }),
    ),
    invalid(/an offset without a length/),
  ),
  bad(
    'a sparse map in no size',
    tar(file('s', 'a', { pax: [['GNU.sparse.map', '0,1']] })),
    invalid(/does not say its size/),
  ),
  bad(
    'a sparse file without its map',
    tar(
      file('s', 'a', {
        pax: [
          ['GNU.sparse.major', 1],
          ['GNU.sparse.minor', 0],
          ['GNU.sparse.realsize', 9],
        ],
      }),
    ),
    invalid(/has no map/),
  ),
  bad('a sparse map of letters', tar(inDataMap('x'.repeat(512))), invalid(/no list of numbers/)),
  bad('a sparse map that never ends', tar(inDataMap('999999\n'.padEnd(1024, '1\n'))), invalid(/does not end within/)),
  bad(
    'an old sparse map that is cut short',
    Buffer.concat([
      header({ path: 's', type: 'S', format: 'gnu', edit: (bytes) => bytes.fill(1, 482, 483) }, 0),
      ...Array.from({ length: 20 }, () => moreMap()),
    ]),
    invalid(/cut short/),
  ),
  good(
    'a sparse format that is not known, as the file that it is',
    [
      tar(
        file('s', 'ab', {
          pax: [
            ['GNU.sparse.major', 2],
            ['GNU.sparse.minor', 0],
            ['GNU.sparse.name', 't'],
          ],
        }),
      ),
    ],
    { s: text('ab') },
  ),
]

function inDataMap(map: string): Buffer {
  return file('s', map, {
    pax: [
      ['GNU.sparse.major', 1],
      ['GNU.sparse.minor', 0],
      ['GNU.sparse.realsize', 9],
    ],
  })
}

/** Announces another. */
function moreMap(): Buffer {
  const bytes = Buffer.alloc(512)
  bytes[504] = 1
  return bytes
}

const order: ImageCase[] = [
  good('a file twice', [tar(file('a', 'old'), file('a', 'new', { mode: 0o600 }))], { a: 'file 600 0:0 3 "new"' }),
  good('a file that becomes a folder', [tar(file('a', 'old'), folder('a'), file('a/b', '1'))], {
    a: DIR,
    'a/b': text('1'),
  }),
  good('a folder that becomes a file', [tar(folder('a'), file('a/b', '1'), file('a', 'new'))], { a: text('new') }),
  good('a folder twice', [tar(folder('a', { mode: 0o700 }), file('a/b', '1'), folder('a', { mode: 0o711, uid: 3 }))], {
    a: 'directory 711 3:0',
    'a/b': text('1'),
  }),
  good('a hard link to a file that is replaced then', [tar(file('a', 'old'), hardlink('b', 'a'), file('a', 'new'))], {
    a: text('new'),
    b: text('old'),
  }),
  good(
    'a hard link to a file that was replaced before',
    [tar(file('a', 'old'), file('a', 'new'), hardlink('b', 'a'))],
    { a: text('new'), b: 'same as a' },
  ),
  good('a hard link that is replaced by a file', [tar(file('a', '1'), hardlink('b', 'a'), file('b', '2'))], {
    a: text('1'),
    b: text('2'),
  }),
  good('a link that becomes a folder', [tar(symlink('a', 'b'), folder('a'), file('a/x', '1'))], {
    a: DIR,
    'a/x': text('1'),
  }),
  good(
    'a child before its parent',
    [tar(file('a/b/c', '1'), folder('a/b', { mode: 0o700 }), folder('a', { uid: 7 }))],
    { a: 'directory 755 7:0', 'a/b': 'directory 700 0:0', 'a/b/c': text('1') },
  ),
  good('a hard link before its target', [tar(hardlink('a', 'b'), file('b', '1'))], { a: text('1'), b: 'same as a' }),
  good('hard links to hard links', [tar(hardlink('a', 'b'), hardlink('c', 'a'), file('b', '1'), hardlink('d', 'c'))], {
    a: text('1'),
    b: 'same as a',
    c: 'same as a',
    d: 'same as a',
  }),
  bad('a hard link to itself', tar(file('a'), hardlink('a', 'a')), invalid(/hard link "a" leads to itself/)),
  bad('hard links in a circle', tar(hardlink('a', 'b'), hardlink('b', 'a')), invalid(/leads to (itself|nothing)/)),
  bad('a hard link to a folder', tar(folder('d'), hardlink('a', 'd')), invalid(/"a" leads to a folder, "d"/)),
  bad(
    'a hard link to a folder that comes later',
    tar(hardlink('a', 'd'), folder('d')),
    invalid(/"a" leads to a folder, "d"/),
  ),
  bad(
    'a hard link to its root',
    tar(folder('.'), hardlink('a', '.')),
    invalid(/"a" leads to a folder|"a" has no target/),
  ),
  good('hard links to a symbolic link', [tar(symlink('s', '../away'), hardlink('h', 's'))], {
    h: 'symlink 777 0:0 -> ../away',
    s: 'same as h',
  }),
  good('hard links to a device', [tar(character('n', 1, 3), hardlink('m', 'n'))], {
    m: 'character-device 666 0:0 1:3',
    n: 'same as m',
  }),
  good('a whiteout before its own file', [tar(file('a', 'low')), tar(whiteout('a'), file('a', 'new'))], {
    a: text('new'),
  }),
  good('a whiteout after its own file', [tar(file('a', 'low')), tar(file('a', 'new'), whiteout('a'))], {
    a: text('new'),
  }),
]

const low = tar(folder('d', { mode: 0o700 }), file('d/x', 'low x'), file('d/y', 'low y'), file('f', 'low f'))
const lowTree = { d: 'directory 700 0:0', 'd/x': text('low x'), 'd/y': text('low y'), f: text('low f') }
const merging: ImageCase[] = [
  good('a layer of nothing above another', [low, tarEnd], lowTree),
  good('a file above a file', [low, tar(file('f', 'new'))], { ...lowTree, f: text('new') }),
  good('a whiteout of a file', [low, tar(whiteout('d/x'))], {
    d: 'directory 700 0:0',
    'd/y': text('low y'),
    f: text('low f'),
  }),
  good('a whiteout of a folder', [low, tar(whiteout('d'))], { f: text('low f') }),
  good('a whiteout of what is not there', [low, tar(whiteout('nothing'), whiteout('no/such/folder'))], lowTree),
  good('a whiteout and a folder in its place', [low, tar(whiteout('d'), folder('d'), file('d/z', 'z'))], {
    d: DIR,
    'd/z': text('z'),
    f: text('low f'),
  }),
  good('a folder and then the whiteout of what was there', [low, tar(folder('d'), file('d/z', 'z'), whiteout('d'))], {
    d: DIR,
    'd/z': text('z'),
    f: text('low f'),
  }),
  good('a whiteout, a file, and a folder in its place', [low, tar(whiteout('d'), file('d', '1'), folder('d'))], {
    d: DIR,
    f: text('low f'),
  }),
  good('a file, a whiteout, and a folder in its place', [low, tar(file('d', '1'), whiteout('d'), folder('d'))], {
    d: DIR,
    f: text('low f'),
  }),
  good('a whiteout and a child in its place', [low, tar(whiteout('d'), file('d/z', 'z'))], {
    d: DIR,
    'd/z': text('z'),
    f: text('low f'),
  }),
  good(
    'a folder that became a file, with whiteouts for what was in it',
    [low, tar(file('d', 'now'), whiteout('d/x'))],
    {
      f: text('low f'),
      d: text('now'),
    },
  ),
  good('a whiteout in the middle', [low, tar(whiteout('f')), tar(file('f', 'top'))], { ...lowTree, f: text('top') }),
  good('a whiteout of a whiteout', [low, tar(whiteout('f')), tar(whiteout('f'))], {
    d: 'directory 700 0:0',
    'd/x': text('low x'),
    'd/y': text('low y'),
  }),
  good('an opaque folder before its files', [low, tar(folder('d'), opaque('d'), file('d/z', 'z'))], {
    d: DIR,
    'd/z': text('z'),
    f: text('low f'),
  }),
  good('an opaque folder after its files', [low, tar(file('d/z', 'z'), opaque('d'))], {
    d: DIR,
    'd/z': text('z'),
    f: text('low f'),
  }),
  good('an opaque root', [low, tar(file('.wh..wh..opq'), file('a', 'new'))], { a: text('new') }),
  good('an opaque root in the middle', [low, tar(file('m', '1'), file('.wh..wh..opq')), tar(file('a', '2'))], {
    a: text('2'),
    m: text('1'),
  }),
  good(
    'an opaque folder in the middle',
    [low, tar(folder('d'), opaque('d'), file('d/m', 'm')), tar(file('d/t', 't'))],
    { d: DIR, 'd/m': text('m'), 'd/t': text('t'), f: text('low f') },
  ),
  good('an opaque folder of nothing above a folder', [low, tar(folder('d', { mode: 0o750 }), opaque('d'))], {
    d: 'directory 750 0:0',
    f: text('low f'),
  }),
  good('a folder above a file', [low, tar(folder('f'), file('f/x', '1'))], { ...lowTree, f: DIR, 'f/x': text('1') }),
  good('a file above a folder', [low, tar(file('d', 'flat'))], { d: text('flat'), f: text('low f') }),
  good('a file between folders', [low, tar(file('d', 'flat')), tar(file('d/t', 't'))], {
    d: DIR,
    'd/t': text('t'),
    f: text('low f'),
  }),
  good(
    'whiteouts in folders as deep as they can be, above a file',
    [tar(file('d', '1')), tar(whiteout(deepPath.slice(8)))],
    { d: text('1') },
  ),
  good(
    'folders as deep as they can be in three layers',
    [tar(file(deepPath, '1')), tar(file(`${deepPath.slice(2)}2`, '2')), tar(whiteout(deepPath.slice(8)))],
    {
      ...parentsOf(deepPath),
      [deepPath]: text('1'),
      [`${deepPath.slice(2)}2`]: text('2'),
    },
  ),
  good('a link above a folder', [low, tar(symlink('d', 'f'))], { d: 'symlink 777 0:0 -> f', f: text('low f') }),
  good(
    'a folder above a link',
    [tar(folder('t'), file('t/a', '1'), symlink('l', 't')), tar(folder('l'), file('l/b', '2'))],
    { l: DIR, 'l/b': text('2'), t: DIR, 't/a': text('1') },
  ),
  good(
    'a file in a folder that only a lower link names',
    [tar(folder('t'), file('t/a', '1'), symlink('l', 't')), tar(file('l/b', '2'))],
    { l: DIR, 'l/b': text('2'), t: DIR, 't/a': text('1') },
  ),
  good('a whiteout behind a lower link', [tar(file('t/a', '1'), symlink('l', 't')), tar(whiteout('l/a'))], {
    l: 'symlink 777 0:0 -> t',
    t: DIR,
    't/a': text('1'),
  }),
  good('a parent that only a lower layer describes', [low, tar(file('d/z', 'z'))], { ...lowTree, 'd/z': text('z') }),
  good(
    'attributes of a folder in three layers',
    [
      tar(folder('d', { uid: 1, pax: [['SCHILY.xattr.user.a', 'x']] })),
      tar(folder('d', { uid: 2 })),
      tar(file('d/z', 'z')),
    ],
    { d: 'directory 755 2:0', 'd/z': text('z') },
  ),
  good('a hard link to a lower file', [low, tar(hardlink('h', 'd/x'))], {
    ...lowTree,
    'd/x': text('low x'),
    h: 'same as d/x',
  }),
  good('a hard link to a lower file that its layer hides', [low, tar(whiteout('f'), hardlink('g', 'f'))], {
    d: 'directory 700 0:0',
    'd/x': text('low x'),
    'd/y': text('low y'),
    g: text('low f'),
  }),
  good('a hard link to a lower file that a higher layer hides', [low, tar(hardlink('g', 'f')), tar(whiteout('f'))], {
    d: 'directory 700 0:0',
    'd/x': text('low x'),
    'd/y': text('low y'),
    g: text('low f'),
  }),
  good(
    'a hard link to a lower file that a higher layer replaces',
    [low, tar(hardlink('g', 'f')), tar(file('f', 'new'))],
    { ...lowTree, f: text('new'), g: text('low f') },
  ),
  good(
    'a hard link whose target is a link in the next layer',
    [low, tar(hardlink('g', 'f')), tar(hardlink('h', 'g'))],
    { ...lowTree, g: 'same as f', h: 'same as f' },
  ),
  good('a hard link to a file two layers below', [low, tarEnd, tar(hardlink('g', 'f'))], {
    ...lowTree,
    g: 'same as f',
  }),
  good('a hard link to a lower link', [tar(symlink('s', 'x')), tar(hardlink('h', 's'))], {
    h: 'symlink 777 0:0 -> x',
    s: 'same as h',
  }),
  good(
    'a hard link to the lower one of two',
    [tar(file('f', 'lowest')), tar(file('f', 'middle')), tar(hardlink('g', 'f'))],
    { f: text('middle'), g: 'same as f' },
  ),
  good('opaque folder and a hard link out of it', [low, tar(hardlink('h', 'd/x'), opaque('d'))], {
    d: DIR,
    f: text('low f'),
    h: text('low x'),
  }),
  {
    name: 'a hard link to a file that is in no layer',
    layers: [low, tar(hardlink('h', 'nowhere'))],
    expect: invalid(/"h" leads to nothing: no lower layer has "nowhere"/),
  },
  {
    name: 'a hard link to a file that a layer between removed',
    layers: [low, tar(whiteout('f')), tar(hardlink('h', 'f'))],
    expect: invalid(/"h" leads to nothing/),
  },
  {
    name: 'a hard link into an opaque folder between',
    layers: [low, tar(folder('d'), opaque('d')), tar(hardlink('h', 'd/x'))],
    expect: invalid(/"h" leads to nothing/),
  },
  {
    name: 'a hard link below an opaque root between',
    layers: [low, tar(file('.wh..wh..opq')), tar(hardlink('h', 'd/x'))],
    expect: invalid(/"h" leads to nothing/),
  },
  {
    name: 'a hard link to a file that a folder hides between',
    layers: [low, tar(file('f/x', '1')), tar(hardlink('h', 'f'))],
    expect: invalid(/"h" leads to nothing/),
  },
  {
    name: 'a hard link to a file that is removed where whiteouts stand in its place',
    layers: [low, tar(whiteout('f'), whiteout('f/x')), tar(hardlink('h', 'f'))],
    expect: invalid(/"h" leads to nothing/),
  },
  {
    name: 'a hard link to a lower folder',
    layers: [low, tar(hardlink('h', 'd'))],
    expect: invalid(/"h" leads to nothing/),
  },
  {
    name: 'a hard link above the lowest layer',
    layers: [tar(hardlink('h', 'f'))],
    expect: invalid(/"h" leads to nothing/),
  },
]

export const imageCases: readonly ImageCase[] = [
  ...escapes,
  ...devices,
  ...bombs,
  ...containers,
  ...headers,
  ...attributes,
  ...sparseFiles,
  ...order,
  ...merging,
]

/** One that becomes files. */
export interface GoodCase extends ImageCase {
  expect: Listing
}

export const isGood = (each: ImageCase): each is GoodCase => !(each.expect['message'] instanceof RegExp)

export const digestOf = (bytes: Buffer): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`

/** A case's layers as the reader of layers takes them. */
export const layersOf = ({ layers, unpacked = layers }: ImageCase) =>
  layers.map((blob, index) => ({ blob, diffId: digestOf(unpacked[index] ?? blob) }))

/** With the root folder as it is when nobody describes it. */
export const withRoot = (expect: Listing): Listing => ({ '/': DIR, ...expect })
