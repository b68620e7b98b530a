/** Imports run one way: cli → sandbox → {vmm, image, boot, guest, store} → {link, wire, artifact, tar, process} → sdk. Siblings do not meet. */
const inner = '^packages/bandsox/src/'
const tests = '\\.test\\.ts$|/testing/'

/** @param {string} folder @param {string[]} allowed What it may import besides itself and the sdk. Tests may reach further. */
const layer = (folder, allowed) => ({
  name: `${folder}-imports-only-what-lies-below`,
  severity: 'error',
  from: { path: `${inner}${folder}/`, pathNot: tests },
  to: { path: inner, pathNot: [folder, ...allowed].map((name) => `${inner}${name}(/|\\.ts$)`) },
})

module.exports = {
  forbidden: [
    { name: 'no-circle', severity: 'error', from: {}, to: { circular: true } },
    { name: 'no-unresolvable', severity: 'error', from: {}, to: { couldNotResolve: true } },
    {
      name: 'the-model-does-no-io',
      severity: 'error',
      from: { path: '^packages/sdk/src/', pathNot: tests },
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
      from: { pathNot: tests },
      to: { path: tests },
    },
    layer('process', []),
    layer('wire', []),
    layer('artifact', ['process']),
    layer('tar', []),
    layer('link', ['process']),
    layer('store', ['process']),
    layer('guest', ['link', 'wire']),
    layer('boot', ['artifact', 'process']),
    layer('image', ['artifact', 'tar', 'process']),
    layer('vmm', ['artifact', 'link', 'process']),
    layer('sandbox', ['vmm', 'image', 'boot', 'guest', 'store', 'link', 'artifact', 'tar', 'process']),
    layer('cli', ['sandbox', 'config', 'process/make-folder']),
    {
      name: 'definitions-of-commands-load-no-sandboxes',
      comment:
        'Completion loads all definitions at each Tab. What an action needs, it imports when it runs: await import(…)',
      severity: 'warn',
      from: { path: `${inner}cli/`, pathNot: tests },
      to: { path: `${inner}sandbox/`, dependencyTypesNot: ['dynamic-import', 'type-only'] },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules|/dist/' },
    exclude: { path: '/dist/' },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.base.json' },
    enhancedResolveOptions: { exportsFields: ['exports'], conditionNames: ['import', 'node'] },
  },
}
