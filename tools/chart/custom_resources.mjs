// node custom_resources.mjs OBJECTS.json FOLDER
//
// Checks custom resources against the definitions in FOLDER/node_modules/@kubernetes-models: values by the packages'
// validators, and keys by the TypeScript compiler, which alone knows a misspelled one.

import {execFileSync} from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const PACKAGES = {
  "monitoring.coreos.com/v1": "prometheus-operator",
  "keda.sh/v1alpha1": "keda",
  "gateway.networking.k8s.io/v1": "gateway-api",
};

const [file, tools] = process.argv.slice(2);
const objects = JSON.parse(fs.readFileSync(file, "utf8"));
const folder = fs.mkdtempSync(path.join(tools, "check-"));
let failed = false;
try {
  const lines = [];
  for (const [i, object] of objects.entries()) {
    const {apiVersion, kind, metadata} = object;
    const module = `@kubernetes-models/${PACKAGES[apiVersion]}/${apiVersion}/${kind}`;
    const script = path.join(tools, "node_modules", `${module}.js`);
    const {[kind]: Model} = await import(pathToFileURL(script));
    try {
      new Model(object).validate();
    } catch (error) {
      failed = true;
      console.error(`${kind} ${metadata.name}: ${error.message}`);
    }
    lines.push(`import type {I${kind} as T${i}} from "${module}";`);
    lines.push(`export const object${i}: T${i} = ${JSON.stringify(object)};`);
  }
  fs.writeFileSync(path.join(folder, "objects.mts"), lines.join("\n"));
  const compiler = path.join(tools, "node_modules", "typescript", "bin", "tsc");
  const flags = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022"];
  execFileSync(process.execPath, [compiler, ...flags, path.join(folder, "objects.mts")], {stdio: "inherit"});
} catch (error) {
  failed = true;
  console.error(error.message);
} finally {
  fs.rmSync(folder, {recursive: true});
}
process.exit(failed ? 1 : 0);
