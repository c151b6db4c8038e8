// Wires the form, the server and the results together.

import * as api from "./api.js"
import {confirmed} from "./confirm.js"
import {deleteAllRuns, deleteRun, loadRuns, saveRun} from "./history.js"
import {watchServer} from "./live.js"
import {Parameters} from "./parameters.js"
import * as player from "./player.js"
import {RunView} from "./run_view.js"
import {isDark, loadForm, onTheme, saveApiKey, saveForm, toggleTheme} from "./state.js"
import {expectedSeconds, fromRecord, randomSeed, speakRun, Take, toRecord} from "./takes.js"
import {VoicePicker} from "./voices.js"

const byId = id => document.getElementById(id)
const form = loadForm()
const parameters = new Parameters(form, changed)
const picker = new VoicePicker(form, changed, fail)
const views = new Map()  // by run
let maxCharacters = 0
let underWay = null  // {run, controller}
let connected = null  // a promise

function connect() {
  connected = describe()
  return connected
}

/** Asks the server what it offers. */
async function describe() {
  fail(null)
  try {
    const names = await api.models()
    if (!names.includes(form.model)) form.model = names[0]
    fillSelect("model", names, names.length > 1)
    const info = await api.modelInfo(form.model)
    byId("family").textContent = info.model_type
    maxCharacters = info.max_characters ?? 0  // null where the server does not say it
    const usual = info.language ?? (info.languages.includes("en") ? "en" : info.languages[0] ?? "")
    if (!info.languages.includes(form.language)) form.language = usual
    fillSelect("language", info.languages, info.languages.length > 1, languageName)
    parameters.show(info)
    await picker.load(info.change_voices)
    byId("key-form").hidden = true
  } catch (error) {
    fail(error)
  }
  changed()
}

function fillSelect(name, values, shown, label = value => value) {
  byId(name).replaceChildren(...values.map(value => new Option(label(value), value)))
  byId(name).value = form[name]
  byId(`${name}-field`).hidden = !shown
}

const languageName = code => new Intl.DisplayNames(["en"], {type: "language"}).of(code)

/** Shows an error in the server's words; null clears it. A missing key is asked for. */
function fail(error) {
  const missing = error?.status === 401
  if (missing) {
    byId("key-form").hidden = false
    byId("key").focus()
  }
  byId("error").textContent = error && !(missing && !byId("key").value) ? error.message : ""
  byId("error").hidden = !byId("error").textContent
}

function changed() {
  saveForm(form)
  const length = form.text.trim().length
  const limit = maxCharacters ? ` of ${maxCharacters.toLocaleString()}` : ""
  const seconds = Math.ceil(expectedSeconds(form.text))
  byId("count").textContent = `${length.toLocaleString()}${limit} characters, about ${seconds} s`
  byId("count").classList.toggle("over", maxCharacters > 0 && length > maxCharacters)
  const takes = plannedTakes().length
  byId("speak").querySelector("span").textContent = takes > 1 ? `Speak ${takes} takes` : "Speak"
}

const comparing = () => byId("compare").getAttribute("aria-expanded") === "true"

/** Presets and seeds of the takes that the form asks for. */
function plannedTakes() {
  const first = form.seed === "" ? randomSeed() : Number(form.seed)
  if (!comparing()) return [{preset: form.preset, seed: first}]
  const presets = parameters.compared.length ? parameters.compared : [form.preset]
  const count = Math.max(1, Math.min(8, Number(byId("takes").value)))
  const seeds = Array.from({length: count}, (_, i) => first + i)
  return presets.flatMap(preset => seeds.map(seed => ({preset, seed})))
}

async function speak() {
  if (!byId("form").reportValidity()) return
  stop()
  fail(null)
  player.unlock()
  await connected
  const voice = picker.chosen
  const model = {model: form.model, ...(byId("language-field").hidden ? {} : {language: form.language})}
  const takes = plannedTakes().map(({preset, seed}) => {
    const fields = {input: form.text.trim(), ...model, ...voice.fields, ...parameters.fields(preset), seed}
    return new Take(fields, preset)
  })
  const run = {id: Date.now(), created: Date.now(), voice: voice.name, clip: voice.clip, takes}
  const controller = new AbortController()
  underWay = {run, controller}
  showRun(run).scrollIntoView({block: "nearest"})
  showSpeaking()
  await speakRun(run, controller.signal, take => takeChanged(run, take))
  if (underWay?.run === run) underWay = null
  showSpeaking()
  if (views.has(run)) await saveRun(toRecord(run)).catch(fail)
}

function takeChanged(run, take) {
  views.get(run)?.refresh(take)
  if (take === run.takes[0] && take.state === "speaking" && take.sound.length) {
    views.get(run)?.play(take)
    announce(`Speaking. First audio after ${take.ttfa.toFixed(1)} seconds.`)
  }
  if (take.state === "done") announce(`Done: ${take.sound.duration.toFixed(1)} seconds of audio.`)
  if (take.state === "failed") {
    if (take.status === 401) fail({status: 401, message: take.error})
    announce(`Failed: ${take.error}`)
  }
}

function stop() {
  if (underWay) announce("Stopped.")
  underWay?.controller.abort()
  underWay = null
  player.stop()
  showSpeaking()
}

function showSpeaking() {
  byId("stop").disabled = !underWay && player.isSilent()
}

function announce(message) {
  byId("announcer").textContent = message
}

function showRun(run) {
  const view = new RunView(run, {again: useAgain, remove, useSeed})
  views.set(run, view)
  byId("runs").prepend(view.element)
  showCount()
  return view.element
}

function showCount() {
  byId("empty").hidden = views.size > 0
  byId("clear").hidden = views.size === 0
}

async function useAgain(run) {
  const {input, language, seed, model, voice, preset = "", ...rest} = run.takes[0].request
  Object.assign(form, {text: input, seed: String(seed), preset: run.takes[0].preset, overrides: rest})
  if (language) form.language = byId("language").value = language
  byId("text").value = form.text
  byId("seed").value = form.seed
  await picker.take(voice, run.clip, run.voice)
  await connect()
  byId("text").focus()
}

async function remove(run) {
  if (underWay?.run === run) stop()
  const {element} = views.get(run)
  views.delete(run)
  await deleteRun(run.id).catch(fail)  // what is out of sight is gone
  element.remove()
  showCount()
}

async function clear() {
  stop()
  const elements = [...views.values()].map(view => view.element)
  views.clear()
  await deleteAllRuns().catch(fail)
  for (const element of elements) element.remove()
  showCount()
}

function useSeed(seed) {
  form.seed = byId("seed").value = String(seed)
  changed()
  announce(`Seed ${seed} is used.`)
}

function listen() {
  for (const name of ["text", "seed", "model", "language"]) {
    if (form[name]) byId(name).value = form[name]
    byId(name).addEventListener("input", event => {
      form[name] = event.target.value
      changed()
    })
  }
  byId("model").addEventListener("change", connect)
  byId("takes").addEventListener("input", changed)
  byId("compare").addEventListener("click", () => {
    const open = !comparing()
    byId("compare").setAttribute("aria-expanded", String(open))
    byId("compare-panel").hidden = !open
    if (open) byId("compare-panel").scrollIntoView({block: "nearest"})
    changed()
  })
  byId("form").addEventListener("submit", event => {
    event.preventDefault()
    speak()
  })
  byId("key-form").addEventListener("submit", event => {
    event.preventDefault()
    saveApiKey(byId("key").value)
    connect()
  })
  byId("stop").addEventListener("click", stop)
  player.onPlaying(showSpeaking)
  confirmed(byId("clear"), clear)
  document.addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault()
      speak()
    } else if (event.key === "Escape") stop()
  })
  byId("theme").addEventListener("click", toggleTheme)
  onTheme(() => {
    byId("theme").setAttribute("aria-pressed", String(isDark()))
    for (const wave of document.querySelectorAll(".wave")) wave.dispatchEvent(new Event("redraw"))
  })
}

listen()
connect()
watchServer()
for (const record of await loadRuns()) showRun(fromRecord(record))
