/** Imports run one way: cli → sandbox → {vmm, image, boot, guest, store} → {link, wire, artifact, process} → sdk. Siblings do not meet. */
const inner = '^packages/bandsox/src/'

/** @param {string} folder @param {string[]} allowed What it may import besides itself and the sdk; helpers of tests have a rule of their own. */
const layer = (folder, allowed) => ({
  name: `${folder}-imports-only-what-lies-below`,
  severity: 'error',
  from: { path: `${inner}${folder}/` },
  to: { path: inner, pathNot: [folder, 'testing', ...allowed].map((name) => `${inner}${name}(/|\\.ts$)`) },
})

module.exports = {
  forbidden: [
    { name: 'no-circle', severity: 'error', from: {}, to: { circular: true } },
    { name: 'no-unresolvable', severity: 'error', from: {}, to: { couldNotResolve: true } },
    {
      name: 'the-model-does-no-io',
      severity: 'error',
      from: { path: '^packages/sdk/src/' },
      to: { dependencyTypes: ['core'] },
    },
    {
      name: 'the-sdk-knows-nobody',
      severity: 'error',
      from: { path: '^packages/sdk/' },
      to: { path: '^packages/(?!sdk/)' },
    },
    {
      name: 'nobody-imports-tests',
      severity: 'error',
      from: { pathNot: '\\.test\\.ts$|/testing/' },
      to: { path: '\\.test\\.ts$|/testing/' },
    },
    layer('process', []),
    layer('wire', []),
    layer('artifact', ['process']),
    layer('link', ['process']),
    layer('store', ['process']),
    layer('guest', ['link', 'wire']),
    layer('boot', ['artifact', 'process']),
    layer('image', ['artifact', 'process']),
    layer('vmm', ['link', 'process']),
    layer('sandbox', ['vmm', 'image', 'boot', 'guest', 'store', 'link', 'artifact', 'process']),
    layer('cli', ['sandbox', 'config']),
  ],
  options: {
    doNotFollow: { path: 'node_modules|/dist/' },
    exclude: { path: '/dist/' },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.base.json' },
    enhancedResolveOptions: { exportsFields: ['exports'], conditionNames: ['import', 'node'] },
  },
}
