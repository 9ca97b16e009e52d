// node dashboard.mjs DASHBOARD.json FOLDER
//
// Checks a dashboard against Grafana's own types in FOLDER/node_modules/@grafana/schema by the TypeScript compiler: the
// whole, and for each panel its options and how it draws, which the type of the whole leaves open.

import {execFileSync} from "node:child_process";
import fs from "node:fs";
import path from "node:path";

const SCHEMA = "@grafana/schema";
const composable = (kind, name) => `${SCHEMA}/dist/esm/raw/composable/${kind}/panelcfg/x/${name}PanelCfg_types.gen.js`;
// What a panel's `options` and its `fieldConfig.defaults.custom` are.
const PANELS = {
  timeseries: {file: composable("timeseries", "TimeSeries"), custom: "FieldConfig"},
  stat: {file: composable("stat", "Stat"), custom: null},
  heatmap: {file: composable("heatmap", "Heatmap"), custom: "FieldConfig"},
};

const [file, tools] = process.argv.slice(2);
const dashboard = JSON.parse(fs.readFileSync(file, "utf8"));
// Grafana's enumerations are declared as such, which no plain string fits: they are compared by their values.
const lines = [
  "type Plain<T> = T extends string ? `${T}` : T extends number ? (`${T}` extends `${infer N extends number}` ? N : T)",
  "  : T extends boolean | null | undefined ? T : T extends (infer E)[] ? Plain<E>[] : {[K in keyof T]: Plain<T[K]>};",
  `import type {Dashboard} from "${SCHEMA}";`,
  `export const whole: Plain<Dashboard> = ${JSON.stringify(dashboard)};`,
];
for (const [kind, {file}] of Object.entries(PANELS)) lines.push(`import type * as ${kind} from "${file}";`);
let failed = false;
for (const {id, title, type, options, fieldConfig} of dashboard.panels) {
  if (type === "row") continue;
  const known = PANELS[type];
  if (!known) {
    failed = true;
    console.error(`${title}: no types of ${type} are known here`);
    continue;
  }
  lines.push(`export const options${id}: Plain<${type}.Options> = ${JSON.stringify(options)};`);
  const custom = fieldConfig.defaults.custom;
  if (known.custom && custom)
    lines.push(`export const custom${id}: Plain<${type}.${known.custom}> = ${JSON.stringify(custom)};`);
}
const folder = fs.mkdtempSync(path.join(tools, "check-"));
try {
  const script = path.join(folder, "dashboard.mts");
  fs.writeFileSync(script, lines.join("\n"));
  const compiler = path.join(tools, "node_modules", "typescript", "bin", "tsc");
  const flags = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022"];
  execFileSync(process.execPath, [compiler, ...flags, script], {stdio: "inherit"});
} catch (error) {
  failed = true;
  console.error(error.message);
} finally {
  fs.rmSync(folder, {recursive: true});
}
process.exit(failed ? 1 : 0);
