import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { TarReader } from '../../tar/tar-reader.js'
import { hasCode } from '../../testing/errors.js'
import { file, hardlink, tar, whiteout } from '../testing/tar-builder.js'
import { ImageTree } from './image-tree.js'
import { type LayerNode, LayerTree } from './layer-tree.js'

const COUNT = 1_000
const many = (make: (index: number) => Buffer): Buffer[] => Array.from({ length: COUNT }, (_, index) => make(index))

async function layerOf(...entries: Buffer[]): Promise<LayerTree> {
  const tree = new LayerTree({ allowDevices: false, takeNodes: () => undefined })
  const reader = new TarReader((entry) => tree.add(entry))
  reader.write(tar(...entries))
  reader.end()
  await tree.finish()
  return tree
}

/** Counts how often a folder's nodes are looked at one after the other. */
class WatchedChildren extends Map<string, LayerNode> {
  visits = 0

  override *[Symbol.iterator](): MapIterator<[string, LayerNode]> {
    for (const each of super.entries()) {
      this.visits++
      yield each
    }
    return undefined
  }

  override entries(): MapIterator<[string, LayerNode]> {
    return this[Symbol.iterator]()
  }

  override *values(): MapIterator<LayerNode> {
    for (const [, node] of this) yield node
    return undefined
  }
}

function watched(layer: LayerTree, name: string): WatchedChildren {
  const directory = layer.root.children.get(name)
  assert.ok(directory?.kind === 'directory')
  const children = new WatchedChildren(directory.children)
  children.visits = 0
  directory.children = children
  return children
}

describe('merging', () => {
  it('looks once at a folder of whiteouts, however many links want a file in its place', async () => {
    const image = new ImageTree()
    await image.merge(await layerOf(...many((index) => hardlink(`link${index}`, 'd'))))
    const layer = await layerOf(...many((index) => whiteout(`d/${index}`)))
    const children = watched(layer, 'd')
    await image.merge(layer)
    assert.equal(children.visits, COUNT)
    const [inode] = await image.merge(await layerOf(file('d', 'x')))
    assert.equal(inode?.paths.length, COUNT + 1)
    assert.equal([...image.finish()].length, 1)
  })

  it('looks for the target of many links once in each layer', async () => {
    const image = new ImageTree({ maxLinkSteps: 3 * 2 })
    await image.merge(await layerOf(...many((index) => hardlink(`link${index}`, 'a/b'))))
    for (const layer of [file('a/x'), file('c'), hardlink('a/b', 'c')]) await image.merge(await layerOf(layer))
    // From here on their target is another one.
    await assert.rejects(image.merge(await layerOf(file('c'))), hasCode('image-too-large', /take over 6 steps/))
  })

  it('refuses an image whose links lead too far down', async () => {
    const image = new ImageTree({ maxLinkSteps: 100 })
    await image.merge(await layerOf(hardlink('one', `${'d/'.repeat(40)}x`), hardlink('other', `${'d/'.repeat(40)}y`)))
    await image.merge(await layerOf(file('a')))
    await assert.rejects(
      image.merge(await layerOf(file('a'))),
      hasCode('image-too-large', /hard links to lower layers/),
    )
  })

  it('lets others have their turn', async () => {
    const image = new ImageTree()
    const layer = await layerOf()
    for (let index = 0; index < 200_000; index++) layer.root.children.set(`${index}`, { kind: 'whiteout' })
    let turns = 0
    let isMerging = true
    const count = () => {
      if (isMerging) setImmediate(count)
      turns++
    }
    setImmediate(count)
    await image.merge(layer)
    isMerging = false
    assert.ok(turns >= 4, `${turns}`)
  })

  it('has names as deep as they come', async () => {
    const image = new ImageTree()
    await image.merge(await layerOf(whiteout(`${'d/'.repeat(2045)}e`)))
    const path = `${'d/'.repeat(2047)}f`
    const [inode] = await image.merge(await layerOf(file(path)))
    assert.deepEqual(inode?.paths, [path])
    assert.equal([...image.finish()].length, 2048)
  })
})
