// What the form holds, kept over reloads. The API key is kept until the tab is closed.

const FORM = "chatterbox.form"
const KEY = "chatterbox.key"
const THEME = "chatterbox.theme"

export const SAMPLE_TEXT =
  "The evening train leaves at seven. If we walk along the river we will still be there in good time."

/** @returns {{text, voice, model, language, preset, overrides, seed}} `overrides`: parameters that were moved away from
 *  the preset, by name. */
export function loadForm() {
  const empty = {text: SAMPLE_TEXT, voice: "default", model: "", language: "", preset: "", overrides: {}, seed: ""}
  return {...empty, ...JSON.parse(localStorage.getItem(FORM) ?? "{}")}
}

export function saveForm(form) {
  localStorage.setItem(FORM, JSON.stringify(form))
}

export const apiKey = () => sessionStorage.getItem(KEY) ?? ""

export function saveApiKey(key) {
  sessionStorage.setItem(KEY, key)
}

const system = matchMedia("(prefers-color-scheme: dark)")

export const isDark = () => {
  const chosen = document.documentElement.dataset.theme
  return chosen ? chosen === "dark" : system.matches
}

/** Calls back now, and whenever light changes to dark or back. */
export function onTheme(changed) {
  system.addEventListener("change", changed)
  document.addEventListener("theme", changed)
  changed()
}

/** The system's theme is followed again once the choice is the same. */
export function toggleTheme() {
  const dark = !isDark()
  const chosen = dark === system.matches ? "" : dark ? "dark" : "light"
  document.documentElement.dataset.theme = chosen
  localStorage.setItem(THEME, chosen)
  document.dispatchEvent(new Event("theme"))
}
