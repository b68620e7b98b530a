/** A key and a certificate that only this test trusts, made anew by openssl. */
import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { promisify } from 'node:util'

/** For 127.0.0.1 and localhost. @returns PEM, and the path of the certificate's file. */
export async function makeCertificate(folder: string): Promise<{ key: string; cert: string; file: string }> {
  const [key, file] = [path.join(folder, 'key.pem'), path.join(folder, 'cert.pem')]
  const argv = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2']
  argv.push(
    '-subj',
    '/CN=localhost',
    '-addext',
    'subjectAltName=IP:127.0.0.1,DNS:localhost',
    '-keyout',
    key,
    '-out',
    file,
  )
  await promisify(execFile)('openssl', argv)
  return { key: await readFile(key, 'utf8'), cert: await readFile(file, 'utf8'), file }
}
