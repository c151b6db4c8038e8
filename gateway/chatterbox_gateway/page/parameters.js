// Presets and sliders, as the server describes its model.

/** Labels, and the usual values that a slider covers; the number beside it takes all that the server allows. */
const KNOWN = {
  exaggeration: {label: "Exaggeration", slider: [0, 2], step: 0.05, hint: "Strength of expression"},
  cfg_weight: {label: "CFG weight", slider: [0, 1], step: 0.05, hint: "Less of it slows expressive speech down"},
  temperature: {label: "Temperature", slider: [0, 1.5], step: 0.05, hint: "Variety; 0 takes the most probable token"},
  speed: {label: "Speed", slider: [0.5, 2], step: 0.05, hint: "Of the speech, at the same pitch"},
  top_p: {label: "Top-p", slider: [0.05, 1], step: 0.05, hint: "Share of the probability that is drawn from"},
  min_p: {label: "Min-p", slider: [0, 0.5], step: 0.01, hint: "Least probability, relative to the largest one"},
  repetition_penalty: {label: "Repetition penalty", slider: [1, 2], step: 0.05, hint: "Above 1, tokens repeat less"},
  top_k: {label: "Top-k", slider: [0, 2000], step: 10, hint: "Number of tokens that are drawn from; 0 for all"},
  num_steps: {label: "Passes", slider: [1, 20], step: 1, hint: "Of a block of 16 tokens, at most"},
  time_shift_tau: {label: "Time shift", slider: [0, 2], step: 0.05, hint: "The higher, the more tokens are kept early"},
  omnivoice_schedule_t_shift: {
    label: "Schedule shift",
    slider: [0, 2],
    step: 0.05,
    hint: "Below 1 the last passes keep most of the tokens",
  },
  position_temperature: {label: "Position noise", slider: [0, 5], step: 5, hint: "0 keeps the best tokens of each pass"},
}

const FIRST = ["exaggeration", "cfg_weight", "temperature", "speed"]
const OWN_PRESET = ""  // the server's defaults

const byId = id => document.getElementById(id)
const title = name => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ")
export const presetTitle = name => (name === OWN_PRESET ? "Default" : title(name))

export class Parameters {
  #info = {parameters: {}, presets: {}}
  #rows = new Map()
  #changed

  /** form: `preset` and `overrides` are read and written; changed: called after each change. */
  constructor(form, changed) {
    this.form = form
    this.#changed = changed
    byId("reset").addEventListener("click", () => this.#set({}, form.preset))
  }

  /** info: the answer of /model/info. */
  show(info) {
    this.#info = info
    this.presets = [OWN_PRESET, ...Object.keys(info.presets).filter(name => Object.keys(info.presets[name]).length)]
    if (!this.presets.includes(this.form.preset)) this.form.preset = OWN_PRESET
    const supported = Object.entries(this.form.overrides).filter(([name]) => name in info.parameters)
    this.form.overrides = Object.fromEntries(supported)
    byId("presets").hidden = this.presets.length < 2
    showPills(byId("presets"), "radio", this.presets, name => name === this.form.preset, name => this.#choose(name))
    showPills(byId("compare-panel"), "checkbox", this.presets, () => false, this.#changed)
    this.#rows.clear()
    const [sliders, more] = document.querySelectorAll("#parameters .sliders")
    sliders.replaceChildren()
    more.replaceChildren()
    for (const [name, range] of Object.entries(info.parameters)) {
      ;(FIRST.includes(name) ? sliders : more).append(this.#row(name, range))
    }
    byId("more").hidden = !more.childElementCount
    this.#refresh()
  }

  /** Presets that are ticked for a comparison. */
  get compared() {
    const ticked = [...document.querySelectorAll("#compare-panel .pill input:checked")]
    return ticked.map(input => input.value)
  }

  /** Fields of a request. */
  fields(preset = this.form.preset) {
    return {...(preset === OWN_PRESET ? {} : {preset}), ...this.form.overrides}
  }

  #choose(preset) {
    const {speed} = this.form.overrides  // no preset sets it
    this.#set(speed === undefined ? {} : {speed}, preset)
  }

  #set(overrides, preset) {
    Object.assign(this.form, {overrides, preset})
    this.#refresh()
    this.#changed()
  }

  #base(name) {
    return this.#info.presets[this.form.preset]?.[name] ?? this.#info.parameters[name].default
  }

  #row(name, range) {
    const known = KNOWN[name] ?? {label: title(name), hint: "", slider: [range.minimum, range.maximum], step: 0.05}
    const row = byId("slider-template").content.cloneNode(true).firstElementChild
    const label = row.querySelector("label"), [number, slider] = row.querySelectorAll("input")
    label.textContent = known.label
    label.htmlFor = number.id = `parameter-${name}`
    label.title = known.hint
    slider.setAttribute("aria-label", known.label)
    const [low, high] = known.slider, step = known.step
    Object.assign(number, {min: range.minimum, max: range.maximum, step: range.integer ? 1 : "any"})
    Object.assign(slider, {min: Math.max(low, range.minimum), max: Math.min(high, range.maximum), step})
    for (const input of [number, slider]) {
      input.addEventListener("input", () => {
        if (input.value !== "" && input.checkValidity()) this.#override(name, Number(input.value), input)
      })
    }
    number.addEventListener("change", () => this.#refresh())  // an empty or impossible number is undone
    this.#rows.set(name, {row, number, slider})
    return row
  }

  #override(name, value, input) {
    if (value === this.#base(name)) delete this.form.overrides[name]
    else this.form.overrides[name] = value
    this.#refresh(input)
    this.#changed()
  }

  /** Shows the values, except in the input that is being typed into. */
  #refresh(typing = null) {
    for (const [name, {row, number, slider}] of this.#rows) {
      const value = this.form.overrides[name] ?? this.#base(name)
      for (const input of [number, slider]) if (input !== typing) input.value = value
      const {min, max} = slider
      slider.style.setProperty("--filled", `${(100 * (slider.value - min)) / (max - min)}%`)
      row.classList.toggle("changed", name in this.form.overrides)
    }
    byId("reset").hidden = !Object.keys(this.form.overrides).length
    for (const input of document.querySelectorAll("#presets input")) input.checked = input.value === this.form.preset
  }
}

function showPills(fieldset, type, names, checked, changed) {
  const pills = names.map(name => {
    const pill = byId("pill-template").content.cloneNode(true).firstElementChild
    const input = pill.querySelector("input")
    Object.assign(input, {type, name: fieldset.id, value: name, checked: checked(name)})
    input.addEventListener("change", () => changed(name))
    pill.querySelector("span").textContent = presetTitle(name)
    return pill
  })
  fieldset.querySelector(".pills").replaceChildren(...pills)
}
