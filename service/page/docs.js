// Renders /openapi.json: endpoints, parameters, answers, schemas.
"use strict";

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function fold(title, ...content) {
  const details = element("details");
  const summary = element("summary");
  summary.append(...title);
  details.append(summary, ...content);
  return details;
}

function schemaName(content) {
  return Object.entries(content || {})
    .map(([kind, { schema = {} }]) => `${kind} ${schema.$ref ? schema.$ref.split("/").pop() : ""}`.trim())
    .join(", ");
}

function operation(path, method, description) {
  const parts = [element("p", "", description.description || description.summary || "")];
  const parameters = (description.parameters || []).map(
    ({ name, in: place, required, description: meaning, schema = {} }) =>
      `${name} (${place}${required ? ", required" : ""}) ${meaning || schema.description || ""}`,
  );
  if (parameters.length) parts.push(element("pre", "", parameters.join("\n")));
  if (description.requestBody) parts.push(element("p", "", `Takes ${schemaName(description.requestBody.content)}`));
  const answers = Object.entries(description.responses).map(
    ([status, answer]) => `${status}  ${answer.description}  ${schemaName(answer.content)}`,
  );
  parts.push(element("pre", "", answers.join("\n")));
  return fold([element("span", "method", method.toUpperCase()), element("code", "", path)], ...parts);
}

async function show() {
  const document_ = await (await fetch("openapi.json")).json();
  const prefix = document_.servers?.[0]?.url ?? ""; // Where a proxy shows the server below a path.
  const operations = Object.entries(document_.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, description]) => operation(prefix + path, method, description)),
  );
  document.getElementById("operations").replaceChildren(...operations);
  const schemas = Object.entries(document_.components.schemas).map(([name, schema]) =>
    fold([element("code", "", name)], element("pre", "", JSON.stringify(schema, null, 2))),
  );
  document.getElementById("schemas").replaceChildren(...schemas);
}

show();
