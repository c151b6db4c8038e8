// A button that asks once more before it deletes.

const PATIENCE = 4_000  // milliseconds
const QUESTION = "Really delete?"

export function confirmed(button, act) {
  const hasIcon = button.childElementCount > 0
  const name = hasIcon ? button.getAttribute("aria-label") : button.textContent
  let timer = null
  const show = text => (hasIcon ? button.setAttribute("aria-label", text) : (button.textContent = text))
  const calm = () => {
    clearTimeout(timer)
    timer = null
    button.classList.remove("asking")
    show(name)
  }
  button.addEventListener("blur", calm)
  button.addEventListener("click", () => {
    if (timer) {
      calm()
      act()
      return
    }
    timer = setTimeout(calm, PATIENCE)
    button.classList.add("asking")
    show(QUESTION)
  })
}
