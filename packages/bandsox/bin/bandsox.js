#!/usr/bin/env node
// In the repository, with its executable bit: npm links it before the build has made what it starts.
import '../dist/cli/main.js'
